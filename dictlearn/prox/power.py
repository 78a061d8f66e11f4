"""A penalty that goes from l1 towards counting while the run goes on.

Legend: n rows, m atoms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dictlearn import processes
from dictlearn.codes import Codes
from dictlearn.errors import InputError, number
from dictlearn.prox.table import Constant, Moment


@dataclass(frozen=True)
class Power(Constant):
    """p-annealing (Karvonen et al. 2024, section 4): `lambda_p * sum((a + eps)^p - eps^p)`.

    p falls linearly from `p_start` to `p_end` over the run, and lambda_p follows so that the
    penalty of the present codes keeps the scale that it has at p = 1,

        lambda_p = lambda * sum(a) / sum((a + eps)^p - eps^p),    sums over the batch, constant,

    where the paper multiplies lambda by the ratio of the old penalty to the new at every change
    of p; the batch is that of all processes. Small codes come to cost as much as large ones, which
    are no longer shrunk.
    Before an encoder it acts as a rectifier: `relu(v - threshold)`.

    Args:
        lambda_: the price of one unit of code while p is 1.
        p_start: p until the annealing starts.
        p_end: p at the end, and in evaluation.
        start_fraction: share of the run before the annealing.
        end_fraction: share of the run after which p stays at `p_end`.
        eps: bounds the price of the smallest codes, in units of codes.
        target_l0: L0 that lambda is steered to in training; not steered if None.

    Raises:
        InputError: a number is out of its range.
    """

    lambda_: float | Tensor
    p_start: float = 1.0
    p_end: float = 0.2
    start_fraction: float = 0.2
    end_fraction: float = 0.8
    eps: float = 1e-2
    target_l0: float | None = None

    def __post_init__(self) -> None:
        _positive("prox.p_start", self.p_start, 1.0)
        _positive("prox.p_end", self.p_end, 1.0)
        _positive("prox.eps", self.eps)
        first = number("prox.start_fraction", self.start_fraction, 0.0, 1.0)
        if number("prox.end_fraction", self.end_fraction, 0.0, 1.0) < first:
            raise InputError(
                f"prox.end_fraction={self.end_fraction} is before "
                f"prox.start_fraction={first}: p cannot stop changing before it starts."
            )
        if not isinstance(self.lambda_, Tensor):
            _positive("prox.lambda_", self.lambda_)
        if self.target_l0 is not None:
            _positive("prox.target_l0", self.target_l0)

    @property
    def convex(self) -> bool:
        """False: below 1, a power is not convex."""
        return False

    @property
    def steered_to(self) -> float | None:
        """The `target_l0` of the config."""
        return self.target_l0

    def priced(self, lambda_: Tensor) -> Power:
        """Return the same penalty at another price, 0-dimensional."""
        return replace(self, lambda_=lambda_)

    def at(self, moment: Moment) -> Power:
        """Return the penalty with the p of this step."""
        whole = self.end_fraction - self.start_fraction
        done = (moment.fraction - self.start_fraction) / whole if whole > 0 else 1.0
        if moment.fraction < self.start_fraction:
            done = 0.0
        p = self.p_start + min(1.0, done) * (self.p_end - self.p_start)
        return replace(self, p_start=p, p_end=p)

    def __call__(self, v: Tensor, threshold: Tensor | float) -> Codes:
        """Return `relu(v - threshold)`, dense."""
        return Codes.from_dense(torch.relu(v - threshold))

    def value(self, codes: Codes) -> Tensor:
        """Return the penalty of every row, `[n]`; the scale of lambda_p carries no gradient."""
        values, p = codes.values, self.p_end
        if p == 1.0:
            return torch.mul(codes.l1(), self.lambda_)
        powers = ((values + self.eps).pow(p) - math.pow(self.eps, p)).sum(-1)
        with torch.no_grad():
            tiny = torch.finfo(values.dtype).tiny
            plain, bent = processes.total(torch.stack([values.sum(), powers.sum()]))
            scale = torch.mul(plain / bent.clamp_min(tiny), self.lambda_)
        return scale * powers

    def check(self, n_atoms: int) -> None:
        """Accept any dictionary."""


def _positive(key: str, value: float, maximum: float = float("inf")) -> None:
    if number(key, value, 0.0, maximum) == 0:
        raise InputError(f"{key}=0 must be above 0.")
