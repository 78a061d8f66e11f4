"""First-order solvers of sparse inference: frozen hyper-parameters, state returned.

Both work in the residual form `y + eta (x - y Phi) Phi^T`, the cheaper one for `m > 2 d`.

Legend: n rows, m atoms, d width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dictlearn.errors import flag
from dictlearn.prox import Prox


class State(NamedTuple):
    """Where a solver stands; all rows are independent of each other.

    Attributes:
        codes: `[n, m]`.
        point: where the next gradient is taken, `[n, m]`.
        inertia: the momentum's `t`, `[n, 1]`.
    """

    codes: Tensor
    point: Tensor
    inertia: Tensor

    def rows(self, keep: Tensor) -> State:
        """Return the state of some rows (a mask or indices)."""
        return State(*(part[keep] for part in self))


class Solver(Protocol):
    """One way to go downhill; the driver `infer` owns the loop and the stopping rule."""

    def step(self, x: Tensor, atoms: Tensor, prox: Prox, state: State, step_size: Tensor) -> State:
        """Return the state after one step of size `step_size`."""


def start(codes: Tensor) -> State:
    """Return the state before the first step, at rest at `codes: [n, m]`."""
    return State(codes, codes, codes.new_ones(len(codes), 1))


def proximal_gradient(
    x: Tensor, atoms: Tensor, prox: Prox, point: Tensor, step_size: Tensor
) -> Tensor:
    """Return `prox(y + eta (x - y Phi) Phi^T)`, `[n, m]`."""
    residual = x - point @ atoms
    forward = torch.addmm(point, residual * step_size, atoms.T)
    return prox(forward, step_size * prox.lambda_).values


@dataclass(frozen=True)
class Ista:
    """Proximal gradient descent (Daubechies, Defrise & De Mol 2004)."""

    def step(self, x: Tensor, atoms: Tensor, prox: Prox, state: State, step_size: Tensor) -> State:
        """Return the state after one step."""
        codes = proximal_gradient(x, atoms, prox, state.codes, step_size)
        return State(codes, codes, state.inertia)


@dataclass(frozen=True)
class Fista:
    """Accelerated proximal gradient (Beck & Teboulle 2009, eqs. 4.1-4.3).

    Args:
        restart: whether a row forgets its momentum when it points uphill (O'Donoghue & Candes
            2015, section 3.2, gradient scheme); halves the steps to a gap of 1e-4.
    """

    restart: bool = True

    def __post_init__(self) -> None:
        flag("inference.solver.restart", self.restart)

    def step(self, x: Tensor, atoms: Tensor, prox: Prox, state: State, step_size: Tensor) -> State:
        """Return the state after one step."""
        codes = proximal_gradient(x, atoms, prox, state.point, step_size)
        change = codes - state.codes
        inertia = (1 + (1 + 4 * state.inertia.square()).sqrt()) / 2
        momentum = (state.inertia - 1) / inertia
        if self.restart:
            uphill = ((state.point - codes) * change).sum(1, keepdim=True) > 0
            momentum = momentum.masked_fill(uphill, 0.0)
            inertia = inertia.masked_fill(uphill, 1.0)
        return State(codes, torch.addcmul(codes, change, momentum), inertia)
