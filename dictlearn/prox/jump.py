"""The hard threshold of JumpReLU, whose gradient is taken straight through the step.

Legend: n rows, m atoms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dictlearn import processes
from dictlearn.codes import Codes
from dictlearn.errors import InputError, number
from dictlearn.prox.table import Constant


@dataclass(frozen=True)
class Jump(Constant):
    """A price for every positive code, whatever its size: `lambda_ * |a|_0`, `a >= 0`.

    Its proximal operator keeps an entry above a threshold as it is and drops the others. A step
    has no gradient, so that thresholds are learned through the step's mean slope in a window
    (Rajamanoharan et al. 2024, "Jumping ahead", eqs. 9, 11, 12), `K(u) = 1` for `|u| < 1/2`:

        d a / d theta        = -(theta / bandwidth) K((v - theta) / bandwidth)
        d |a|_0 / d theta    = -(1 / bandwidth)     K((v - theta) / bandwidth)

    Args:
        lambda_: the price of one positive code of a row; with a target the weight of missing it.
        bandwidth: width of the window, in units of the codes.
        target_l0: mean L0 that is wanted; the price is then `lambda_ (L0 / target_l0 - 1)^2`
            with the mean L0 of the batch (of all processes), and 0 at the target.

    Raises:
        InputError: a number is not above 0.
    """

    lambda_: float
    bandwidth: float = 0.05
    target_l0: float | None = None

    def __post_init__(self) -> None:
        for name in ("lambda_", "bandwidth", "target_l0"):
            given = getattr(self, name)
            if given is not None and number(f"prox.{name}", given, minimum=0.0) == 0:
                raise InputError(f"prox.{name}=0 must be above 0.")

    @property
    def convex(self) -> bool:
        """False."""
        return False

    def __call__(self, v: Tensor, threshold: Tensor | float) -> Codes:
        """Return `v` where it exceeds the threshold (at least 0), else 0, dense."""
        threshold = torch.as_tensor(threshold, dtype=v.dtype, device=v.device)
        kept: Tensor = _Kept.apply(v, threshold, self.bandwidth)  # type: ignore[no-untyped-call]
        return Codes.from_dense(kept)

    def count(self, v: Tensor, threshold: Tensor) -> Tensor:
        """Return how many entries exceed the threshold, `[n]`, with a gradient for thresholds."""
        counted: Tensor = _Counted.apply(v, threshold, self.bandwidth)  # type: ignore[no-untyped-call]
        return counted

    def price(self, count: Tensor) -> Tensor:
        """Return the price of the codes that were counted, `[n]`: what training adds to the loss.

        Without a target only its gradient is handed on: `value` already counts it. With one, every
        row has the value of the whole and the gradient of its own count, whatever its weight.
        """
        more = count - count.detach()
        if self.target_l0 is None:
            return self.lambda_ * more
        missed = processes.mean(count.detach().mean()) / self.target_l0 - 1
        return self.lambda_ * (missed.square() + 2 * missed / self.target_l0 * more)

    def value(self, codes: Codes) -> Tensor:
        """Return `lambda_ * |a|_0`, `[n]`, or zeros where a target takes the place of a price."""
        if self.target_l0 is not None:
            return codes.values.new_zeros(len(codes.values))
        return self.lambda_ * codes.l0().to(codes.values.dtype)

    def check(self, n_atoms: int) -> None:
        """Raise InputError when the target is more than the atoms can give."""
        if self.target_l0 is not None and self.target_l0 > n_atoms:
            raise InputError(
                f"prox.target_l0={self.target_l0} is more than dictionary.n_atoms={n_atoms}."
            )


class _Kept(torch.autograd.Function):
    """`v` where it exceeds the threshold."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        passed = v > threshold
        ctx.save_for_backward(v, threshold, passed)
        ctx.bandwidth = bandwidth
        return v * passed

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        v, threshold, passed = ctx.saved_tensors
        for_threshold = None
        if ctx.needs_input_grad[1]:
            slope = _window(v, threshold, ctx.bandwidth) * grad
            for_threshold = _like(slope * (-threshold / ctx.bandwidth), threshold)
        return grad * passed, for_threshold, None


class _Counted(torch.autograd.Function):
    """How many entries of a row exceed the threshold."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(v, threshold)
        ctx.bandwidth = bandwidth
        return (v > threshold).sum(-1, dtype=v.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        v, threshold = ctx.saved_tensors
        slope = _window(v, threshold, ctx.bandwidth) * grad[:, None]
        return None, _like(slope / -ctx.bandwidth, threshold), None


def _window(v: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """Return 1 where an entry is within half a bandwidth of the threshold, else 0."""
    return ((v - threshold).abs() < 0.5 * bandwidth).to(v.dtype)


def _like(gradient: Tensor, threshold: Tensor) -> Tensor:
    """Sum a gradient `[n, m]` over the axes that the threshold was broadcast along."""
    return gradient.sum_to_size(threshold.shape)
