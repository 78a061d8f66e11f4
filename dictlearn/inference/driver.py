"""The one loop of every iterative solver, and its stopping rule.

Legend: n rows, m atoms, d width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.errors import InputError, number, whole_number
from dictlearn.inference.objective import gap_of
from dictlearn.inference.solvers import Fista, Solver
from dictlearn.inference.spectrum import largest_eigenvalue
from dictlearn.mesh import ALONE, Processes
from dictlearn.prox import Penalty, Priced, Prox

FLOAT32_TOLERANCE = 1e-5
"""Smallest relative gap that float32 certifies: below, it stalls at rounding errors."""


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
    shards: Processes = ALONE,
) -> Solution:
    """Solve `min_a 1/2 |x - a Phi|^2 + penalty(a)` for every row.

    Rows are independent: each is returned as it was at the first check at which its gap was at
    most `tolerance`, whatever the rest of the batch needed. Tolerances below 1e-5 are met in
    float64, also for float32 rows; the gap is that of the codes before they are rounded.

    Args:
        x: `[n, d]`.
        atoms: `[m, d]`, unit rows.
        prox: a convex sparsity.
        solver: `Fista()` if None.
        tolerance: largest allowed relative duality gap; 0 takes exactly `max_steps` steps.
        max_steps: bound on the steps (of every round of a reweighted sparsity).
        initial: codes to start from, zeros if None.
        step_size: 1 / largest eigenvalue of `Phi Phi^T` if None.
        check_every: steps between two looks at the gap, each as dear as a step.
        shards: the processes that hold the atoms together; atoms and codes are of this one's.

    Raises:
        InputError: widths differ, the sparsity is not convex, or the tolerance is below what
            the device can certify.
    """
    sparsity = check_problem(x, atoms, prox)
    whole_number("inference.max_steps", max_steps)
    whole_number("inference.check_every", check_every)
    work = working_dtype(x, tolerance)
    solver = Fista() if solver is None else solver
    if step_size is None:
        step_size = 1 / largest_eigenvalue(atoms, shards=shards)[0]
    x_, atoms_, step_ = x.to(work), atoms.to(work), step_size.to(work)

    def solve(penalty: Penalty, start: Codes | None) -> Solution:
        codes = x_.new_zeros(len(x), len(atoms)) if start is None else start.dense().to(work)
        return _descend(
            x_, atoms_, penalty, solver, step_size=step_, tolerance=tolerance, start=codes,
            max_steps=max_steps, check_every=check_every, shards=shards,
        )  # fmt: skip

    return in_rounds(x_, sparsity, initial, solve, x.dtype)


def in_rounds(
    x: Tensor,
    prox: Priced,
    initial: Codes | None,
    solve: Callable[[Penalty, Codes | None], Solution],
    dtype: torch.dtype,
) -> Solution:
    """Solve the convex problems of a sparsity, each from the codes of the last; return the last.

    Args:
        x: `[n, d]`.
        prox: the sparsity.
        initial: codes that the first problem starts from.
        solve: `(penalty, start) -> solution` of one problem.
        dtype: of the codes and the gap returned.
    """
    solution = solve(prox.penalty(x), initial)
    steps = solution.steps
    for _ in range(prox.rounds - 1):
        solution = solve(prox.reweighed(x, solution.codes), solution.codes)
        steps += solution.steps
    codes = solution.codes._replace(values=solution.codes.values.to(dtype))
    return solution._replace(codes=codes, gap=solution.gap.to(dtype), steps=steps)


def _descend(
    x: Tensor,
    atoms: Tensor,
    penalty: Penalty,
    solver: Solver,
    *,
    start: Tensor,
    step_size: Tensor,
    tolerance: float,
    max_steps: int,
    check_every: int,
    shards: Processes,
) -> Solution:
    """Solve one convex problem from dense codes `start: [n, m]`; see `infer`."""
    codes = start.clone()
    gap = x.new_full((len(x),), torch.inf)
    rows = torch.arange(len(x), device=x.device)
    state = solver.start(start)
    steps = 0
    while steps < max_steps and (len(rows) > 0 or steps == 0):
        state = solver.step(x, atoms, penalty, state, step_size, shards)
        steps += 1
        last = steps == max_steps
        if last or (tolerance > 0 and steps % check_every == 0):
            residual = x - shards.total(state.codes @ atoms)
            now = gap_of(
                x, Codes.from_dense(state.codes), residual, residual @ atoms.T, penalty, shards
            )  # fmt: skip
            now = shards.largest(now)  # all go on with the same rows, whatever rounding says
            leave = torch.ones_like(now, dtype=torch.bool) if last else now <= tolerance
            codes[rows[leave]] = state.codes[leave]
            gap[rows[leave]] = now[leave]
            stay = ~leave
            rows, x, state, penalty = rows[stay], x[stay], state.rows(stay), penalty.rows(stay)
    return Solution(Codes.from_dense(codes), gap, steps, gap <= tolerance)


def check_problem(x: Tensor, atoms: Tensor, prox: Prox) -> Priced:
    """Return the sparsity; raise InputError when rows, atoms and sparsity do not fit."""
    if x.shape[-1] != atoms.shape[-1]:
        raise InputError(
            f"x has width {x.shape[-1]} but the atoms have width {atoms.shape[-1]}: [n, d] rows "
            "need [m, d] atoms. Is one of them transposed?"
        )
    return check_convex(prox)


def check_convex(prox: Prox) -> Priced:
    """Return the sparsity; raise InputError when it has no certified optimum."""
    if not isinstance(prox, Priced):
        raise InputError(
            f"prox={type(prox).__name__.lower()} is not convex, so an iterative inference cannot "
            "certify its codes: choose prox=soft or prox=relu, or inference=unrolled."
        )
    return prox


def working_dtype(x: Tensor, tolerance: float, precision: str = "auto") -> torch.dtype:
    """Return in which dtype a tolerance can be met for rows like `x`.

    Args:
        x: the rows.
        tolerance: largest allowed relative duality gap; 0: no certificate is wanted.
        precision: `float32`, `float64`, or `auto`: float64 where float32 cannot.

    Raises:
        InputError: the tolerance is negative, or neither precision nor device can meet it.
    """
    check_tolerance(tolerance, precision)
    small = 0 < tolerance < FLOAT32_TOLERANCE
    if precision == "auto" and not small:
        return x.dtype
    work = torch.float64 if precision == "float64" or precision == "auto" else torch.float32
    if work == torch.float64 and x.device.type == "mps":
        raise InputError(
            f"inference.tolerance={tolerance} needs float64, which {x.device.type} does not have: "
            f"raise it to {FLOAT32_TOLERANCE}, or move the hidden states to the CPU."
        )
    return work


def check_tolerance(tolerance: float, precision: str = "auto") -> float:
    """Return a tolerance; raise InputError when it is negative or below its precision."""
    number("inference.tolerance", tolerance, minimum=0.0)
    if 0 < tolerance < FLOAT32_TOLERANCE and precision == "float32":
        raise InputError(
            f"inference.tolerance={tolerance} is below {FLOAT32_TOLERANCE}, the smallest relative "
            "gap that float32 can certify: raise it, or set inference.precision=auto."
        )
    return tolerance
