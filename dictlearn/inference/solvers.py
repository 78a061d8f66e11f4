"""First-order solvers of sparse inference: frozen hyper-parameters, state returned.

All work in the residual form `y + eta (x - y Phi) Phi^T`, the cheaper one for `m > 2 d`.

Legend: n rows, m atoms, d width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dictlearn.errors import flag, number
from dictlearn.mesh import ALONE, Processes
from dictlearn.prox import Penalty


class State(NamedTuple):
    """Where a solver stands; all rows are independent of each other.

    Attributes:
        codes: `[n, m]`.
        point: where the next gradient is taken, `[n, m]`.
        inertia: what the solver remembers of every row besides, `[n, p]`.
    """

    codes: Tensor
    point: Tensor
    inertia: Tensor

    def rows(self, keep: Tensor) -> State:
        """Return the state of some rows (a mask or indices)."""
        return State(*(part[keep] for part in self))


class Solver(Protocol):
    """One way to go downhill; the driver `infer` owns the loop and the stopping rule."""

    def start(self, codes: Tensor) -> State:
        """Return the state before the first step, at rest at `codes: [n, m]`."""

    def step(
        self,
        x: Tensor,
        atoms: Tensor,
        penalty: Penalty,
        state: State,
        step_size: Tensor,
        shards: Processes = ALONE,
    ) -> State:
        """Return the state after one step of size `step_size`, 1 / largest curvature.

        Atoms, prices and state are those of this process where `shards` hold them together.
        """


def proximal_gradient(
    x: Tensor,
    atoms: Tensor,
    penalty: Penalty,
    point: Tensor,
    step_size: Tensor,
    shards: Processes = ALONE,
) -> Tensor:
    """Return the proximal step from `y + eta (x - y Phi) Phi^T`, `[n, m]`.

    Args:
        x: `[n, d]`.
        atoms: `[m, d]`.
        penalty: what pulls the codes to 0.
        point: y, `[n, m]`.
        step_size: eta, `[]` or `[n, 1]`.
        shards: the processes that hold the atoms together; all is of this one's.
    """
    residual = x - shards.total(point @ atoms)
    return penalty.step(torch.addmm(point, residual * step_size, atoms.T), step_size)


SAFE, SHRINK = 1.0, 0.96
"""Constants of greedy FISTA's safeguard, as the authors choose them."""


@dataclass(frozen=True)
class Ista:
    """Proximal gradient descent (Daubechies, Defrise & De Mol 2004)."""

    def start(self, codes: Tensor) -> State:
        """Return the state at rest; nothing is remembered."""
        return State(codes, codes, codes.new_empty(len(codes), 0))

    def step(
        self,
        x: Tensor,
        atoms: Tensor,
        penalty: Penalty,
        state: State,
        step_size: Tensor,
        shards: Processes = ALONE,
    ) -> State:
        """Return the state after one step."""
        codes = proximal_gradient(x, atoms, penalty, state.codes, step_size, shards)
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

    def start(self, codes: Tensor) -> State:
        """Return the state at rest; remembered is the momentum's `t`."""
        return State(codes, codes, codes.new_ones(len(codes), 1))

    def step(
        self,
        x: Tensor,
        atoms: Tensor,
        penalty: Penalty,
        state: State,
        step_size: Tensor,
        shards: Processes = ALONE,
    ) -> State:
        """Return the state after one step."""
        codes = proximal_gradient(x, atoms, penalty, state.point, step_size, shards)
        change = codes - state.codes
        inertia = (1 + (1 + 4 * state.inertia.square()).sqrt()) / 2
        momentum = (state.inertia - 1) / inertia
        if self.restart:
            slope = ((state.point - codes) * change).sum(1, keepdim=True)
            uphill = shards.total(slope) > 0
            momentum = momentum.masked_fill(uphill, 0.0)
            inertia = inertia.masked_fill(uphill, 1.0)
        return State(codes, torch.addcmul(codes, change, momentum), inertia)


@dataclass(frozen=True)
class GreedyFista:
    """Greedy FISTA (Liang, Luo & Schoenlieb 2022, Algorithm 4.3): long steps, full momentum.

        a' = prox(y + eta (x - y Phi) Phi^T),    y' = a' + (a' - a),

    with `eta = step / L`. A row that points uphill forgets its momentum. Steps above 1 / L may
    diverge: a row whose change exceeds `SAFE` times its first one has its step shortened by the
    factor `SHRINK`, down to 1 / L.

    Args:
        step_factor: first step, in units of 1 / L, 1 to 2.
    """

    step_factor: float = 1.3

    def __post_init__(self) -> None:
        number("inference.solver.step_factor", self.step_factor, 1.0, 2.0)

    def start(self, codes: Tensor) -> State:
        """Return the state at rest; remembered are step factor and length of the first change."""
        factor = codes.new_full((len(codes), 1), self.step_factor)
        return State(codes, codes, torch.cat([factor, torch.zeros_like(factor)], dim=1))

    def step(
        self,
        x: Tensor,
        atoms: Tensor,
        penalty: Penalty,
        state: State,
        step_size: Tensor,
        shards: Processes = ALONE,
    ) -> State:
        """Return the state after one step."""
        factor, first = state.inertia[:, :1], state.inertia[:, 1:]
        eta = step_size * factor
        codes = proximal_gradient(x, atoms, penalty, state.point, eta, shards)
        change = codes - state.codes
        slope = ((state.point - codes) * change).sum(1, keepdim=True)
        uphill = shards.total(slope) >= 0
        length = torch.linalg.vector_norm(change, dim=1, keepdim=True)
        if not shards.alone:
            length = shards.total(length.square()).sqrt()
        first = torch.where(first == 0, length, first)
        factor = torch.where(length > SAFE * first, (SHRINK * factor).clamp_min(1), factor)
        point = codes + change.masked_fill_(uphill, 0.0)
        return State(codes, point, torch.cat([factor, first], dim=1))
