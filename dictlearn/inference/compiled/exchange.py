"""Exchange of atoms in Gram form, one row after the other; the twin of `exchange_rows`.

Legend: n rows, m atoms, k codes kept, `G = Phi Phi^T: [m, m]`, `b = x Phi^T: [n, m]`,
a = codes of the atoms held, q = their correlations with the residual.
"""

from __future__ import annotations

import numpy as np

from dictlearn.inference.compiled import compiled
from dictlearn.inference.compiled.active_set import Floats, aim, drop, walk
from dictlearn.inference.compiled.growth import grow, sheet
from dictlearn.inference.compiled.pursuit import (
    LANES,
    Array,
    Atoms,
    add,
    correlation,
    fit,
    largest,
)

BETTER = 1 + 1e-6
"""A smaller share of the energy explained is rounding."""


@compiled
def exchange(
    b: Array,
    gram: Array,
    start: Atoms,
    block: int,
    rounds: int,
    price: float,
    tolerances: tuple[float, float],
    values: Array,
    indices: Atoms,
) -> None:
    """Write the codes of all rows; see `dictlearn.inference.exchange_pursuit`.

    Args:
        b: `[n, m]`.
        gram: `[m, m]`.
        start: atoms to begin with, `[n, s]`, -1 where there are fewer; `s <= k`.
        block: atoms added, and then dropped, in a round.
        rounds: at most.
        price: squared error that a code must save; 0: every row has k codes.
        tolerances: smallest useful correlation, as a share of the row's largest one, and the
            smallest share of an atom that must be new.
        values: zeros `[n, k]`, filled.
        indices: -1 `[n, k]`, filled as far as there are codes.
    """
    k = values.shape[1]
    most = k + block
    lanes = np.empty(LANES, b.dtype)
    held = np.zeros(most + 4, np.int64)
    inverse, a, q, target = np.zeros((most, most)), np.zeros(most), np.zeros(most), np.zeros(most)
    scratch = (inverse, a, q, target, np.zeros(most), np.zeros(most))
    listing = sheet(b.shape[1], most, block, b)
    for i in range(len(b)):
        limits = (tolerances[0] * b[i, largest(b[i], lanes)], tolerances[1])
        size = 0
        for t in range(start.shape[1]):
            j = start[i, t]
            if j >= 0 and add(gram, held, size, j, scratch, limits[1]):
                q[size] = b[i, j]
                size += 1
        size = fit(b[i], gram, held, size, scratch, limits)
        if price > 0.0:
            size = _shrink(b[i], gram, held, size, k, price, scratch)
        best = _keep(b[i], held, a, size, price, 0.0, values[i], indices[i])
        for _ in range(rounds):
            goal = min(most, size + block) if price > 0.0 else most
            size = grow(b[i], gram, held, size, goal, scratch, listing, limits)
            size = _shrink(b[i], gram, held, size, k, price, scratch)
            found = _keep(b[i], held, a, size, price, best * BETTER, values[i], indices[i])
            if found <= best * BETTER:
                break
            best = found


@compiled
def _keep(
    b: Array,
    held: Atoms,
    a: Floats,
    size: int,
    price: float,
    least: float,
    values: Array,
    indices: Atoms,
) -> float:
    """Copy codes that explain more energy, less their price, than `least`; return how much."""
    explained = -price * size
    for u in range(size):
        explained += a[u] * b[held[u]]
    if explained > least:
        for u in range(len(values)):
            values[u] = a[u] if u < size else 0.0
            indices[u] = held[u] if u < size else -1
    return explained


@compiled
def _shrink(
    b: Array,
    gram: Array,
    held: Atoms,
    size: int,
    k: int,
    price: float,
    scratch: tuple[Floats, ...],
) -> int:
    """Drop the atom whose loss raises the error least, and fit, until all are worth their place.

    Without atom u the squared error rises by `a_u^2 / H_uu` (of the least squares). At most `k`
    are left, and each of them saves its price.
    """
    inverse, a, q, target, _work, _g = scratch
    while size > 0:
        least, loss = 0, np.inf
        for u in range(size):
            found = a[u] * a[u] / inverse[u, u]
            if found < loss:
                least, loss = u, found
        if size <= k and loss >= price:
            break
        for u in range(size):
            target[u] = a[u]
        drop(inverse, held, a, target, least, size)
        size = walk(inverse, held, a, target, size - 1)
    for u in range(size):
        q[u] = correlation(b, gram, held, a, size, held[u])
    aim(inverse, a, q, target, size)
    for u in range(size):
        a[u] = max(target[u], 0.0)
    return size
