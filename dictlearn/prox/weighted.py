"""Convex penalties with another price for every atom, given or found from the codes.

Legend: n rows, m atoms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.errors import InputError, number, whole_number
from dictlearn.prox.penalty import Penalty, Price, Steered, checked_price, price_of_rows


@dataclass(frozen=True, eq=False)
class Weighted(Steered):
    """Non-negative l1 with a weight for every atom: `lambda_ * sum_j w_j a_j`, `a >= 0`.

    Args:
        lambda_: the price of one unit of code at weight 1; a list has one for every tapped layer.
        weights: `m` numbers above 0, or the path of a ``.npy`` or ``.safetensors`` file with one
            tensor of that length. The file is read once; afterwards this is float64 `[m]`.
        target_l0: L0 that lambda is steered to in training; not steered if None.

    Raises:
        InputError: a number is out of its range, or the file is not there or not as described.
    """

    lambda_: Any
    weights: Any
    target_l0: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "lambda_", checked_price(self.lambda_, self.target_l0))
        object.__setattr__(self, "weights", _read(self.weights))

    def check(self, n_atoms: int) -> None:
        """Raise InputError when there is not one weight for every atom."""
        if len(self.weights) != n_atoms:
            raise InputError(
                f"prox.weights has {len(self.weights)} weights for dictionary.n_atoms={n_atoms}: "
                "give one for every atom."
            )

    def penalty(self, x: Tensor) -> Penalty:
        """Return the price of every atom for rows `x: [n, d]`."""
        return Penalty(price_of_rows(self.lambda_, x) * self.weights.to(x), 0.0, False)

    def _at_price(self, price: Price) -> Self:
        return replace(self, lambda_=price)


@dataclass(frozen=True)
class Reweighted(Steered):
    """Reweighted l1 (Candes, Wakin & Boyd 2008, section 2.2): large codes are shrunk less.

    It lowers `lambda_ * epsilon * sum_j log(1 + a_j / epsilon)`, `a >= 0`, by a sequence of
    convex problems, each the tangent of the last at its codes,

        lambda_ * sum_j w_j a_j,    w_j = 1 at first, then epsilon / (epsilon + a_j).

    The problem as a whole is not convex; what is certified is the optimum of the last one.

    Args:
        lambda_: the price of the first unit of code; a list has one for every tapped layer.
        epsilon: size of code at which the price is half, in units of codes.
        rounds: convex problems solved, the first included.
        target_l0: L0 that lambda is steered to in training; not steered if None.

    Raises:
        InputError: a number is out of its range.
    """

    lambda_: Any
    epsilon: float = 0.1
    rounds: int = 3
    target_l0: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "lambda_", checked_price(self.lambda_, self.target_l0))
        if number("prox.epsilon", self.epsilon, minimum=0.0) == 0:
            raise InputError("prox.epsilon=0 gives atoms without a code no price: raise it.")
        object.__setattr__(self, "rounds", whole_number("prox.rounds", self.rounds))

    def penalty(self, x: Tensor) -> Penalty:
        """Return the first problem: every atom at weight 1."""
        return Penalty(price_of_rows(self.lambda_, x), 0.0, False)

    def reweighed(self, x: Tensor, codes: Codes) -> Penalty:
        """Return the tangent problem at `codes`, with prices `[n, m]`."""
        weights = self.epsilon / (self.epsilon + codes.dense().detach().abs())
        return Penalty(price_of_rows(self.lambda_, x) * weights.to(x), 0.0, False)

    def value(self, codes: Codes) -> Tensor:
        """Return the penalty of every row, `[n]`, differentiable in the codes."""
        price = price_of_rows(self.lambda_, codes.values)
        return (price * self.epsilon * (codes.values / self.epsilon).log1p()).sum(-1)

    def _at_price(self, price: Price) -> Self:
        return replace(self, lambda_=price)


def _read(weights: Sequence[float] | Tensor | str | Path) -> Tensor:
    """Return weights given as a list, a tensor or a file, float64 `[m]`."""
    if isinstance(weights, Tensor):
        found, told = weights.double(), "prox.weights"
    elif isinstance(weights, str | Path):
        found = _from_file(Path(weights))
        told = f"prox.weights={weights}"
    else:
        found = torch.tensor([number("prox.weights", w) for w in weights], dtype=torch.float64)
        told = "prox.weights"
    if found.ndim != 1 or len(found) == 0 or not bool(((found > 0) & found.isfinite()).all()):
        raise InputError(f"{told} must be a list of finite numbers above 0, one for every atom.")
    return found


def _from_file(path: Path) -> Tensor:
    if not path.is_file():
        raise InputError(f"prox.weights={path} is not a file.")
    if path.suffix == ".npy":
        return torch.from_numpy(np.load(path, allow_pickle=False)).double()
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        tensors = list(load_file(path).values())
        if len(tensors) != 1:
            raise InputError(f"prox.weights={path} has {len(tensors)} tensors: it must have one.")
        return tensors[0].double()
    raise InputError(f"prox.weights={path} must be a .npy or .safetensors file.")
