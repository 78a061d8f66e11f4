"""Sparsities whose optimum can be certified: convex penalties of the codes.

Legend: n rows, m atoms, k kept codes per row, L tapped layers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.errors import number
from dictlearn.prox.penalty import Penalty, Price, Priced, Steered, checked_price, price_of_rows


@dataclass(frozen=True)
class Soft(Steered):
    """Non-negative l1: `lambda_ * sum(a)`, `a >= 0` (Beck & Teboulle 2009, eq. 1.5, one-sided).

    Args:
        lambda_: the price of one unit of code, in units of the (normalised) hidden states; a
            list has one price for every tapped layer.
        target_l0: L0 that lambda is steered to in training; not steered if None.

    Raises:
        InputError: a price is not a finite number above 0.
    """

    lambda_: Any
    target_l0: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "lambda_", checked_price(self.lambda_, self.target_l0))

    def penalty(self, x: Tensor) -> Penalty:
        """Return the price of rows `x: [n, d]`."""
        return Penalty(price_of_rows(self.lambda_, x), 0.0, self._signed())

    def _at_price(self, price: Price) -> Self:
        return replace(self, lambda_=price)


@dataclass(frozen=True)
class SignedSoft(Soft):
    """l1 of codes of both signs: `lambda_ * sum(|a|)` (Beck & Teboulle 2009, eq. 1.5).

    Args:
        lambda_: the price of one unit of code; a list has one for every tapped layer.
        target_l0: L0 that lambda is steered to in training; not steered if None.

    Raises:
        InputError: a price is not a finite number above 0.
    """

    def _signed(self) -> bool:
        return True


@dataclass(frozen=True)
class ElasticNet(Steered):
    """Non-negative l1 with a ridge: `lambda_ * sum(a) + ridge / 2 * sum(a^2)`, `a >= 0`.

    Codes of atoms that are alike are shared among them (Zou & Hastie 2005, eq. 3, with half the
    squared error, so that `ridge` is twice their lambda_2).

    Args:
        lambda_: the price of one unit of code; a list has one for every tapped layer.
        ridge: price of half a squared code.
        target_l0: L0 that lambda is steered to in training; not steered if None.

    Raises:
        InputError: a price is not a finite number above 0, or the ridge is negative.
    """

    lambda_: Any
    ridge: float = 0.1
    target_l0: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "lambda_", checked_price(self.lambda_, self.target_l0))
        object.__setattr__(self, "ridge", number("prox.ridge", self.ridge, minimum=0.0))

    def penalty(self, x: Tensor) -> Penalty:
        """Return price and ridge of rows `x: [n, d]`."""
        return Penalty(price_of_rows(self.lambda_, x), self.ridge, False)

    def _at_price(self, price: Price) -> Self:
        return replace(self, lambda_=price)


@dataclass(frozen=True)
class Relu(Priced):
    """Non-negativity alone: `a >= 0` at no price (non-negative least squares; the ReLU SAE)."""

    @property
    def lambda_(self) -> float:
        """0: codes cost nothing."""
        return 0.0

    def penalty(self, x: Tensor) -> Penalty:
        """Return a price of zero."""
        return Penalty(x.new_zeros(1, 1), 0.0, False)

    def value(self, codes: Codes) -> Tensor:
        """Return zeros, `[n]`."""
        return codes.values.new_zeros(len(codes.values))
