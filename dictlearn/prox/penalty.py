"""What a convex penalty is to a solver: a price for every code, and perhaps a ridge.

Legend: n rows, m atoms, k kept codes per row, L tapped layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.errors import InputError, number
from dictlearn.prox.table import Constant


class Penalty(NamedTuple):
    """`sum_j price_j |a_j| + ridge / 2 * sum_j a_j^2`, over `a >= 0` unless signed.

    Attributes:
        price: of one unit of code; `[1 or n, 1 or m]`.
        ridge: of half a squared code.
        signed: whether codes may be negative.
    """

    price: Tensor
    ridge: float
    signed: bool

    def rows(self, keep: Tensor) -> Penalty:
        """Return the penalty of some rows (a mask or indices)."""
        return self if len(self.price) == 1 else self._replace(price=self.price[keep])

    def to(self, x: Tensor) -> Penalty:
        """Return the penalty with its prices in the dtype of `x` and on its device."""
        return self._replace(price=self.price.to(x))

    def price_of(self, codes: Codes) -> Tensor:
        """Return the price of every kept code; it broadcasts with `codes.values`."""
        if codes.indices is None or self.price.shape[1] == 1:
            return self.price
        return self.price.expand(len(codes.values), -1).gather(1, codes.indices)

    def value(self, codes: Codes) -> Tensor:
        """Return the penalty of every row, `[n]`."""
        total = (self.price_of(codes) * codes.values.abs()).sum(-1)
        if self.ridge == 0:
            return total
        return total + 0.5 * self.ridge * codes.values.square().sum(-1)

    def step(self, v: Tensor, step_size: Tensor) -> Tensor:
        """Return `argmin_a 1/2 |a - v|^2 + step_size * penalty(a)`, `[n, m]`."""
        return shrunk(v, step_size * self.price, self.signed) / (1 + step_size * self.ridge)


def shrunk(v: Tensor, by: Tensor | float, signed: bool) -> Tensor:
    """Return `v` pulled towards 0 by `by`, and nothing below 0 unless signed."""
    if not signed:
        return torch.relu(v - by)
    bound = torch.as_tensor(by, dtype=v.dtype, device=v.device)
    return v - v.clamp(-bound, bound)


class Priced(Constant):
    """A sparsity with a price for codes: base of those whose optimum can be certified."""

    lambda_: Any

    @property
    def convex(self) -> bool:
        """True."""
        return True

    @property
    def rounds(self) -> int:
        """How many convex problems are solved in a row; see `reweighed`."""
        return 1

    def penalty(self, x: Tensor) -> Penalty:
        """Return the (first) convex penalty of rows `x: [n, d]`, in their dtype."""
        raise NotImplementedError

    def reweighed(self, x: Tensor, codes: Codes) -> Penalty:
        """Return the convex penalty that follows after `codes`; the same unless reweighted."""
        return self.penalty(x)

    def __call__(self, v: Tensor, threshold: Tensor | float) -> Codes:
        """Return `v` pulled towards 0 by the threshold, dense; negative parts only if signed."""
        return Codes.from_dense(shrunk(v, threshold, self._signed()))

    def _signed(self) -> bool:
        return False

    def value(self, codes: Codes) -> Tensor:
        """Return the penalty of every row, `[n]`."""
        return self.penalty(codes.values).value(codes)

    def check(self, n_atoms: int) -> None:
        """Accept any dictionary."""


Price = float | Sequence[float] | Tensor
"""One price; one for every tapped layer; or, in a step of training, `[]` or `[n, 1]`."""


def checked_price(price: Price, target_l0: float | None) -> Price:
    """Return a price, a tuple of prices or a tensor.

    Raises:
        InputError: a price is not a finite number above 0, or a list is to be steered.
    """
    if isinstance(price, Tensor):
        return price
    if isinstance(price, Sequence) and not isinstance(price, str):
        if target_l0 is not None:
            raise InputError(
                f"prox.target_l0={target_l0} steers one price, and prox.lambda_ is a list of "
                f"{len(price)}: give one number, or set prox.target_l0=null."
            )
        if len(price) == 0:
            raise InputError("prox.lambda_=[] needs a price for every tapped layer.")
        return tuple(_above_zero("prox.lambda_", each) for each in price)
    if target_l0 is not None:
        _above_zero("prox.target_l0", target_l0)
    return _above_zero("prox.lambda_", price)


def _above_zero(key: str, value: float) -> float:
    if number(key, value, minimum=0.0) == 0:
        raise InputError(
            f"{key}=0 puts no price on the codes: raise it, or use prox=relu."
            if key == "prox.lambda_"
            else f"{key}=0 must be above 0."
        )
    return float(value)


def price_of_rows(price: Price, x: Tensor) -> Tensor:
    """Return the price as `[1, 1]` or `[n, 1]`, in the dtype of `x` and on its device.

    Raises:
        InputError: there is one price per layer, and nobody said which rows are of which layer.
    """
    if isinstance(price, Tensor):
        return price.to(x).reshape(-1, 1)
    if isinstance(price, Sequence):
        if len(price) > 1:
            raise InputError(
                f"prox.lambda_ has {len(price)} prices, one for each tapped layer, and these rows "
                "are of no known layer: choose prices by prox.for_layers(row), or give one number."
            )
        price = price[0]
    return x.new_full((1, 1), price)


def price_of_layers(price: Price, row: Tensor) -> Price:
    """Return the price of rows that come from the tapped layers `row: [n]`, as `[n, 1]`.

    Raises:
        InputError: there are fewer prices than tapped layers.
    """
    if isinstance(price, Tensor) or not isinstance(price, Sequence):
        return price
    if row.device.type == "cpu" and len(row) > 0 and int(row.max()) >= len(price):
        raise InputError(
            f"prox.lambda_ has {len(price)} prices but layer number {int(row.max()) + 1} is "
            "tapped: give one price for every tapped layer, or one number for all."
        )
    return torch.tensor(price, device=row.device)[row][:, None]


class Steered(Priced):
    """Base of penalties with a `lambda_`: one number, one per layer, or steered to an L0."""

    target_l0: float | None

    @property
    def steered_to(self) -> float | None:
        """The `target_l0` of the config."""
        return self.target_l0

    def priced(self, lambda_: Tensor) -> Self:
        """Return the same penalty at another price, 0-dimensional."""
        return self._at_price(lambda_)

    def for_layers(self, row: Tensor) -> Self:
        """Return the penalty of rows that come from the tapped layers `row: [n]`."""
        price = price_of_layers(self.lambda_, row)
        return self if price is self.lambda_ else self._at_price(price)

    def _at_price(self, price: Price) -> Self:
        raise NotImplementedError
