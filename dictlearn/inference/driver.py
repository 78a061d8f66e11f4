"""The one loop of every iterative solver, and its stopping rule.

Legend: n rows, m atoms, d width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.errors import InputError, number, whole_number
from dictlearn.inference.objective import duality_gap
from dictlearn.inference.solvers import Fista, Solver, State, start
from dictlearn.inference.spectrum import largest_eigenvalue
from dictlearn.prox import Prox

FLOAT32_TOLERANCE = 1e-5


class Solution(NamedTuple):
    """The codes of a batch and what is known about them.

    Attributes:
        codes: the codes.
        gap: relative duality gap `[n]`; infinite when nobody asked for it.
        steps: steps taken by the slowest row.
        converged: bool `[n]`, whether the gap is at most the tolerance.
        extra_loss: what a learned encoder adds to the training loss of every row, `[n]`.
    """

    codes: Codes
    gap: Tensor
    steps: int
    converged: Tensor
    extra_loss: Tensor | None = None


@torch.no_grad()
def infer(
    x: Tensor,
    atoms: Tensor,
    prox: Prox,
    solver: Solver | None = None,
    *,
    tolerance: float = 1e-4,
    max_steps: int = 500,
    initial: Codes | None = None,
    step_size: Tensor | None = None,
    check_every: int = 10,
) -> Solution:
    """Solve `min_{a >= 0} 1/2 |x - a Phi|^2 + penalty(a)` for every row.

    Rows are independent: each is returned as it was at the first check at which its gap was at
    most `tolerance`, whatever the rest of the batch needed.

    Args:
        x: `[n, d]`.
        atoms: `[m, d]`, unit rows.
        prox: a convex sparsity.
        solver: `Fista()` if None.
        tolerance: largest allowed relative duality gap; 0 takes exactly `max_steps` steps.
        max_steps: bound on the steps.
        initial: codes to start from, zeros if None.
        step_size: 1 / largest eigenvalue of `Phi Phi^T` if None.
        check_every: steps between two looks at the gap, each as dear as a step.

    Raises:
        InputError: widths differ, the sparsity is not convex, or the tolerance is below what
            the dtype can certify.
    """
    check_problem(x, atoms, prox)
    check_tolerance(tolerance, x.dtype)
    whole_number("inference.max_steps", max_steps)
    whole_number("inference.check_every", check_every)
    solver = Fista() if solver is None else solver
    step_size = 1 / largest_eigenvalue(atoms)[0] if step_size is None else step_size
    codes = x.new_zeros(len(x), len(atoms)) if initial is None else initial.dense().clone()
    gap = x.new_full((len(x),), torch.inf)
    rows = torch.arange(len(x), device=x.device)
    state: State = start(codes.clone())
    steps = 0
    while steps < max_steps and (len(rows) > 0 or steps == 0):
        state = solver.step(x, atoms, prox, state, step_size)
        steps += 1
        last = steps == max_steps
        if last or (tolerance > 0 and steps % check_every == 0):
            now = duality_gap(x, Codes.from_dense(state.codes), atoms, prox)
            leave = torch.ones_like(now, dtype=torch.bool) if last else now <= tolerance
            codes[rows[leave]] = state.codes[leave]
            gap[rows[leave]] = now[leave]
            stay = ~leave
            rows, x, state = rows[stay], x[stay], state.rows(stay)
    return Solution(Codes.from_dense(codes), gap, steps, gap <= tolerance)


def check_problem(x: Tensor, atoms: Tensor, prox: Prox) -> None:
    """Raise InputError when rows and atoms, or solver and sparsity, do not fit."""
    if x.shape[-1] != atoms.shape[-1]:
        raise InputError(
            f"x has width {x.shape[-1]} but the atoms have width {atoms.shape[-1]}: [n, d] rows "
            "need [m, d] atoms. Is one of them transposed?"
        )
    check_convex(prox)


def check_convex(prox: Prox) -> None:
    """Raise InputError when the sparsity has no certified optimum."""
    if not prox.convex:
        raise InputError(
            f"prox={type(prox).__name__.lower()} is not convex, so an iterative inference cannot "
            "certify its codes: choose prox=soft or prox=relu, or inference=unrolled."
        )


def check_tolerance(tolerance: float, dtype: torch.dtype) -> None:
    """Raise InputError when the tolerance is negative or too small for the dtype."""
    number("inference.tolerance", tolerance, minimum=0.0)
    if 0 < tolerance < FLOAT32_TOLERANCE and dtype != torch.float64:
        raise InputError(
            f"inference.tolerance={tolerance} is below {FLOAT32_TOLERANCE}, the smallest relative "
            f"gap that {str(dtype).removeprefix('torch.')} can certify: raise it, set it to 0 to "
            "take exactly inference.max_steps steps, or give float64 hidden states."
        )
