"""What every sparsity is: a penalty of the codes, and the step that lowers it.

Legend: n rows, m atoms, k kept codes per row.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, Self

from torch import Tensor

from dictlearn.codes import Codes


class Moment(NamedTuple):
    """A training step, for sparsities that change or draw something during training.

    Attributes:
        fraction: share of the run that is done, 0 to 1.
        seed: of the run.
        step: number of the step, for draws keyed by it.
    """

    fraction: float
    seed: int
    step: int


class Prox(Protocol):
    """What "sparse" means: the penalty of the codes, and the step that lowers it."""

    @property
    def lambda_(self) -> Any:
        """The price of one unit of code: a number, one per layer or row; 0 when there is none."""

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

    @property
    def steered_to(self) -> float | None:
        """The mean L0 that lambda is steered to in training, if it is."""

    def priced(self, lambda_: Tensor) -> Prox:
        """Return the same sparsity at another price, 0-dimensional."""

    def at(self, moment: Moment) -> Prox:
        """Return the sparsity of a training step; itself where nothing changes or is drawn."""

    def for_layers(self, row: Tensor) -> Prox:
        """Return the sparsity of rows that come from tapped layers `row: [n]`, counted from 0."""


class Constant:
    """A sparsity that is the same at every step and for every layer, at a price that is not
    steered.
    """  # noqa: D205

    @property
    def steered_to(self) -> float | None:
        """None."""
        return None

    def priced(self, lambda_: Tensor) -> Self:
        """Return itself: there is no price to change."""
        return self

    def at(self, moment: Moment) -> Self:
        """Return itself."""
        return self

    def for_layers(self, row: Tensor) -> Self:
        """Return itself."""
        return self
