"""What a learned encoder loses against the codes that a solver finds for the same dictionary.

Legend: n rows, m atoms, d width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.inference.objective import objective
from dictlearn.inference.pursuit import omp
from dictlearn.inference.working_set import solve
from dictlearn.prox import Prox, Relu, TopK


class Amortisation(NamedTuple):
    """The objective of some rows with an encoder's codes and with a solver's.

    Attributes:
        encoder: `1/2 |x - a Phi|^2 + penalty(a)` of every row, `[n]`.
        solver: the same with the solver's codes, `[n]`.
    """

    encoder: Tensor
    solver: Tensor


@torch.no_grad()
def amortisation(x: Tensor, codes: Codes, atoms: Tensor, prox: Prox) -> Amortisation | None:
    """Return what an encoder's codes cost and what the best known codes would cost.

    The amortisation gap is `sum(encoder) / sum(solver) - 1` (O'Neill, Gumran & Klindt 2025). For
    a convex sparsity the solver's codes are optimal to a relative duality gap of 1e-4. For topk no
    optimum is computable; it is measured against non-negative orthogonal matching pursuit with
    the same k, so that a better encoder than that has a gap below 0.

    Args:
        x: `[n, d]`.
        codes: of the encoder.
        atoms: `[m, d]`, unit rows.
        prox: the sparsity.

    Returns:
        None where the sparsity has neither a price nor a number of codes a row.
    """
    if prox.convex and not isinstance(prox, Relu):
        best = solve(x, atoms, prox, tolerance=1e-4, initial=codes).codes
    elif isinstance(prox, TopK):
        best = omp(x, atoms, prox.k)
    else:
        return None
    return Amortisation(objective(x, codes, atoms, prox), objective(x, best, atoms, prox))
