"""The table of sparsities: proximal operators of non-negative penalties.

Legend: n rows, m atoms, k kept codes per row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.errors import InputError, number, whole_number

__all__ = ["Prox", "Relu", "Soft", "TopK"]


class Prox(Protocol):
    """What "sparse" means: the penalty of the codes, and the step that lowers it."""

    @property
    def lambda_(self) -> float:
        """The price of one unit of code; 0 when there is none."""

    @property
    def convex(self) -> bool:
        """Whether the penalty is convex, so that an optimum can be certified."""

    def __call__(self, v: Tensor, threshold: Tensor | float) -> Codes:
        """Return `argmin_{a >= 0} 1/2 |a - v|^2 + threshold * sum(a)` under the constraint.

        Args:
            v: the point, `[n, m]`.
            threshold: a number, or one for each atom `[m]`.
        """

    def value(self, codes: Codes) -> Tensor:
        """Return the penalty of every row's codes, `[n]`."""

    def check(self, n_atoms: int) -> None:
        """Raise InputError when the penalty does not fit a dictionary of `n_atoms`."""


def _rectified(v: Tensor, threshold: Tensor | float) -> Codes:
    return Codes.from_dense(torch.relu(v - threshold))


def _unpriced(codes: Codes) -> Tensor:
    return codes.values.new_zeros(len(codes.values))


@dataclass(frozen=True)
class Soft:
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
class Relu:
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


@dataclass(frozen=True)
class TopK:
    """At most `k` positive codes a row: the `k` largest positive entries are kept.

    A row with fewer than `k` positive entries keeps zeros in the places left; which of several
    equal entries is kept is not specified.

    Args:
        k: codes kept per row.

    Raises:
        InputError: `k` is not a whole number of at least 1.
    """

    k: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", whole_number("prox.k", self.k))

    @property
    def lambda_(self) -> float:
        """0: codes cost nothing, there are only few."""
        return 0.0

    @property
    def convex(self) -> bool:
        """False: the set of k-sparse codes is not convex."""
        return False

    def __call__(self, v: Tensor, threshold: Tensor | float) -> Codes:
        """Return the `k` largest entries of `relu(v - threshold)`, k-sparse."""
        lowered = v - threshold
        values, indices = lowered.topk(self.k, dim=1, sorted=False)
        return Codes(torch.relu(values), indices, v.shape[-1])

    def value(self, codes: Codes) -> Tensor:
        """Return zeros, `[n]`."""
        return _unpriced(codes)

    def check(self, n_atoms: int) -> None:
        """Raise InputError when more codes are kept than there are atoms."""
        if self.k > n_atoms:
            raise InputError(
                f"prox.k={self.k} is more than dictionary.n_atoms={n_atoms}: "
                f"keep at most {n_atoms} codes, or learn more atoms."
            )
