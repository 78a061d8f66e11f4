"""The price of a unit of code as a state of training, steered to a wanted L0.

Legend: n rows, L tapped layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dictlearn import processes
from dictlearn.errors import InputError, number
from dictlearn.seeding import generator

GAIN = 0.1
"""Largest change of log lambda in a step, of exact codes, which answer to it at once. L0 falls
with about the second power of lambda, so a step takes a fifth of the way at most: fast enough for
a run of some hundred steps, and stable."""

SLOW_GAIN = 0.02
"""The same for learned encoders, which answer after some 20 to 50 steps: at 0.1 lambda has by then
grown tenfold, and all atoms are dead."""


class Price(nn.Module):
    """lambda, moved after every training step by how far the mean L0 is from its target.

        log lambda  <-  log lambda + gain * clip(L0 / target - 1, -1, 1)

    Nothing is read back to the host.

    Args:
        lambda_: where it starts.
        target_l0: codes wanted per row, on average.
        gain: `GAIN` or `SLOW_GAIN`.
    """

    lambda_: Tensor

    def __init__(self, lambda_: float, target_l0: float, gain: float = GAIN) -> None:
        super().__init__()
        self.target_l0 = target_l0
        self.gain = gain
        self.register_buffer("lambda_", torch.tensor(float(lambda_)))

    def go_on_from(self, other: Price) -> None:
        """Begin near where this target is met, from the price of another one: see `GAIN`."""
        self.lambda_ = other.lambda_ * math.sqrt(other.target_l0 / self.target_l0)

    @torch.no_grad()
    def observe(self, l0: Tensor) -> None:
        """Take the mean L0 of a step, 0-dimensional, over the rows of all processes."""
        change = torch.exp(self.gain * (l0 / self.target_l0 - 1).clamp(-1, 1))
        self.lambda_ = self.lambda_ * change  # not in place: the step's backward is still to come


def search_price(
    count: Callable[[float], float],
    l0: float,
    first: float,
    bounds: tuple[float, float],
    accuracy: float = 0.01,
) -> float:
    """Return the price at which rows have `l0` codes on average.

    Secant steps on log L0 against the logarithm of the price, kept inside the bracket found.

    Args:
        count: the mean number of codes at a price, which falls with it.
        l0: wanted, above 0.
        first: price to begin with.
        bounds: least price worth a try, and one at which there are no codes.
        accuracy: largest relative error of the L0, where the rows allow it.

    Raises:
        InputError: `l0` is not reached by any price.
    """
    if number("l0", l0, minimum=0.0) == 0:
        raise InputError("l0=0 has no least price: ask for a mean number of codes above 0.")
    floor, high = (math.log(bound) for bound in bounds)
    position, low = math.log(first), -math.inf
    before: tuple[float, float] | None = None
    for _ in range(40):
        found = count(math.exp(position))
        if abs(found - l0) <= accuracy * l0:
            break
        low, high = (position, high) if found > l0 else (low, position)
        here = (position, math.log(max(found, 0.1) / l0))
        position = _next(here, before, low, high)
        before = here
        if position < floor:
            raise InputError(
                f"no price gives l0={l0} for these rows and atoms (the least gave {found:.1f}): "
                "ask for fewer codes; width and number of atoms bound them."
            )
    # L0 of few rows jumps past the wanted number, and is then about right.
    return math.exp(position)


def _next(
    here: tuple[float, float], before: tuple[float, float] | None, low: float, high: float
) -> float:
    """Return the next log price from `(log price, log of L0 / target)` here and before."""
    position, error = here
    slope = -1.5
    if before is not None and before[0] != position:
        slope = max(-6.0, min(-0.5, (error - before[1]) / (position - before[0])))
    wanted = position - max(-0.7, min(0.7, error / slope))
    return wanted if low < wanted < high else (low + high) / 2


@torch.no_grad()
def sample_of_all(x: Tensor, most: int) -> Tensor:
    """Return at most so many rows of a batch, the same on all processes that share it.

    Args:
        x: `[n, d]`, the rows of this process.
        most: all rows are returned if there are no more, else so many at random.
    """
    n = len(x) * processes.world_size()
    drawn = torch.arange(n)
    if n > most:
        drawn = torch.randperm(n, generator=generator(0, "inference.price"))[:most]
    return processes.rows_of_all(x, drawn.to(x.device))


def over_processes(price: float, device: torch.device) -> Tensor:
    """Return the price that all processes found on the same rows, 0-dimensional.

    The mean of its logarithms: on unequal machines it may differ in the last bits.
    """
    return processes.mean(torch.tensor(price, device=device).log()).exp()
