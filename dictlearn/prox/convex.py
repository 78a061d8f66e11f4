"""Sparsities whose optimum can be certified: convex penalties of the codes.

Legend: n rows, m atoms, k kept codes per row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.errors import InputError, number
from dictlearn.prox.table import Constant


def _rectified(v: Tensor, threshold: Tensor | float) -> Codes:
    return Codes.from_dense(torch.relu(v - threshold))


def _unpriced(codes: Codes) -> Tensor:
    return codes.values.new_zeros(len(codes.values))


@dataclass(frozen=True)
class Soft(Constant):
    """Non-negative l1: `lambda_ * sum(a)`, `a >= 0` (Beck & Teboulle 2009, eq. 1.5, one-sided).

    Args:
        lambda_: the price of one unit of code, in units of the (normalised) hidden states.

    Raises:
        InputError: `lambda_` is not a finite number above 0.
    """

    lambda_: float

    def __post_init__(self) -> None:
        if number("prox.lambda_", self.lambda_, minimum=0.0) == 0:
            raise InputError(
                "prox.lambda_=0 puts no price on the codes: raise it, or use prox=relu."
            )

    @property
    def convex(self) -> bool:
        """True."""
        return True

    def __call__(self, v: Tensor, threshold: Tensor | float) -> Codes:
        """Return `relu(v - threshold)`, dense."""
        return _rectified(v, threshold)

    def value(self, codes: Codes) -> Tensor:
        """Return `lambda_ * sum(a)` of every row, `[n]`."""
        return self.lambda_ * codes.l1()

    def check(self, n_atoms: int) -> None:
        """Accept any dictionary."""


@dataclass(frozen=True)
class Relu(Constant):
    """Non-negativity alone: `a >= 0` at no price (non-negative least squares; the ReLU SAE)."""

    @property
    def lambda_(self) -> float:
        """0: codes cost nothing."""
        return 0.0

    @property
    def convex(self) -> bool:
        """True."""
        return True

    def __call__(self, v: Tensor, threshold: Tensor | float) -> Codes:
        """Return `relu(v - threshold)`, dense."""
        return _rectified(v, threshold)

    def value(self, codes: Codes) -> Tensor:
        """Return zeros, `[n]`."""
        return _unpriced(codes)

    def check(self, n_atoms: int) -> None:
        """Accept any dictionary."""
