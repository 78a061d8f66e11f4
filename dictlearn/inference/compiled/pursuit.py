"""Greedy pursuits in Gram form, one row after the other.

Legend: n rows, m atoms, k slots per row, `G = Phi Phi^T: [m, m]`, `b = x Phi^T: [n, m]`,
c = correlations of all atoms with the residual of a row, a = codes held.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dictlearn.inference.compiled import compiled
from dictlearn.inference.compiled.active_set import Floats, aim, insert, settle

Array = NDArray[np.floating]
Atoms = NDArray[np.int64]
LANES = 64
NEVER = -1e30
"""Below every correlation; fast arithmetic may take an infinity for anything."""


@compiled
def correlate(c: Array, b: Array, gram: Array, atoms: Atoms, a: Array, size: int) -> None:
    """Write `c = b - a G`, four codes at a time: codes and atoms from `size` on must be 0."""
    m = len(c)
    for j in range(m):
        c[j] = b[j]
    for s in range(0, size, 4):
        g0, g1 = gram[atoms[s]], gram[atoms[s + 1]]
        g2, g3 = gram[atoms[s + 2]], gram[atoms[s + 3]]
        a0, a1, a2, a3 = a[s], a[s + 1], a[s + 2], a[s + 3]
        for j in range(m):
            c[j] -= a0 * g0[j] + a1 * g1[j] + a2 * g2[j] + a3 * g3[j]


@compiled
def largest(c: Array, lanes: Array) -> int:
    """Return the place of the largest entry; `lanes: [LANES]` is overwritten."""
    m = len(c)
    full = m - m % LANES
    for lane in range(LANES):
        lanes[lane] = NEVER
    for start in range(0, full, LANES):
        row = c[start : start + LANES]
        for lane in range(LANES):
            lanes[lane] = max(lanes[lane], row[lane])
    best, value = 0, c[0]
    for lane in range(LANES):
        if lanes[lane] > value:
            best, value = lane, lanes[lane]
    while best + LANES < full and c[best] != value:
        best += LANES
    for j in range(full, m):
        if c[j] > c[best]:
            best = j
    return best


@compiled
def correlation(b: Array, gram: Array, held: Atoms, a: Floats, size: int, j: int) -> float:
    """Return that of atom `j` with the residual."""
    total = np.float64(b[j])
    for u in range(size):
        total -= a[u] * gram[j, held[u]]
    return total


@compiled
def add(
    gram: Array, held: Atoms, size: int, j: int, scratch: tuple[Floats, ...], independent: float
) -> bool:
    """Hold atom `j` in slot `size`; False if it depends on those held.

    Args:
        gram: `[m, m]`.
        held: atoms held, in front.
        size: how many there are.
        j: the new one.
        scratch: inverse `[k, k]`, and rows `[k]`: codes, q, target, and two to work with.
        independent: smallest share of the atom's energy that must be new.
    """
    inverse, a, _q, _target, work, g = scratch
    for u in range(size):
        g[u] = gram[j, held[u]]
    if not insert(inverse, work, g, gram[j, j], size, independent):
        return False
    held[size], a[size] = j, 0.0
    return True


@compiled
def fit(
    b: Array,
    gram: Array,
    held: Atoms,
    size: int,
    scratch: tuple[Floats, ...],
    limits: tuple[float, float],
) -> int:
    """Solve the non-negative least squares on the atoms held (Lawson & Hanson 1974).

    Those dropped on the way come back where they would lower the error.

    Returns:
        How many atoms are held then, in front.
    """
    inverse, a, q, target, _work, _g = scratch
    left = settle(inverse, held, a, q, target, size)
    return refill(b, gram, held, left, size, scratch, limits)


@compiled
def refill(
    b: Array,
    gram: Array,
    held: Atoms,
    size: int,
    start: int,
    scratch: tuple[Floats, ...],
    limits: tuple[float, float],
) -> int:
    """Take atoms in slots `size` to `start` back where they would lower the error; see `fit`."""
    inverse, a, q, target, _work, _g = scratch
    for _ in range(3 * start):
        best, value = -1, limits[0]
        for t in range(size, start):
            found = correlation(b, gram, held, a, size, held[t])
            if found > value:
                best, value = t, found
        if best < 0:
            break
        for u in range(size):
            q[u] = correlation(b, gram, held, a, size, held[u])
        held[size], held[best] = held[best], held[size]
        if add(gram, held, size, held[size], scratch, limits[1]):
            q[size] = value
            size = settle(inverse, held, a, q, target, size + 1)
        else:
            start -= 1
            held[size], held[start] = held[start], held[size]
    return size


@compiled
def omp(
    b: Array,
    gram: Array,
    start: Atoms,
    per_step: int,
    tolerances: tuple[float, float],
    values: Array,
    indices: Atoms,
) -> None:
    """Non-negative orthogonal matching pursuit; see `dictlearn.inference.omp`.

    Args:
        b: `[n, m]`.
        gram: `[m, m]`.
        start: atoms to begin with, `[n, s]`, -1 where there are fewer.
        per_step: atoms added before the codes are fitted anew.
        tolerances: smallest useful correlation, as a share of the row's largest one, and the
            smallest share of an atom that must be new.
        values: zeros `[n, k]`, filled.
        indices: -1 `[n, k]`, filled as far as there are codes.
    """
    k, m = values.shape[1], b.shape[1]
    c, lanes = np.empty(m, b.dtype), np.empty(LANES, b.dtype)
    held, short = np.zeros(k + 4, np.int64), np.zeros(k + 4, b.dtype)
    inverse, a, q, target = np.zeros((k, k)), np.zeros(k), np.zeros(k), np.zeros(k)
    scratch = (inverse, a, q, target, np.zeros(k), np.zeros(k))
    for i in range(len(b)):
        c[:] = b[i]
        floor, size, n_start = tolerances[0] * c[largest(c, lanes)], 0, 0
        while n_start < start.shape[1] and start[i, n_start] >= 0:
            n_start += 1
        for step in range(4 * k + 4):
            before, given = size, step == 0 and n_start > 0
            for t in range(n_start if given else min(per_step, k - before)):
                j = start[i, t] if given else largest(c, lanes)
                if not given and not c[j] > floor:
                    break
                if add(gram, held, size, j, scratch, tolerances[1]):
                    q[size] = c[j]
                    size += 1
                c[j] = NEVER
            if size == before and not given:
                break
            size = fit(b[i], gram, held, size, scratch, (floor, tolerances[1]))
            held[size:], short[size:] = 0, 0.0
            for u in range(size):
                short[u] = a[u]
            if size == k:
                break
            correlate(c, b[i], gram, held, short, size)
            for u in range(size):
                q[u] = c[held[u]]
        for u in range(size):
            q[u] = correlation(b[i], gram, held, a, size, held[u])
        aim(inverse, a, q, target, size)
        for u in range(size):
            values[i, u], indices[i, u] = max(target[u], 0.0), held[u]


@compiled
def matching_pursuit(b: Array, gram: Array, useful: float, values: Array, indices: Atoms) -> None:
    """Non-negative matching pursuit, step by step; see `dictlearn.inference.matching_pursuit`.

    Args:
        b: `[n, m]`.
        gram: `[m, m]`.
        useful: smallest useful correlation, as a share of the row's largest one.
        values: zeros `[n, k]`, filled with what every step took off.
        indices: int64 `[n, k]`, filled as far as there are steps.
    """
    c, lanes = np.empty(b.shape[1], b.dtype), np.empty(LANES, b.dtype)
    for i in range(len(b)):
        c[:] = b[i]
        floor = useful * c[largest(c, lanes)]
        for t in range(values.shape[1]):
            j = largest(c, lanes)
            if not c[j] > floor:
                break
            value, row = c[j], gram[j]
            values[i, t], indices[i, t] = value, j
            for u in range(len(c)):
                c[u] -= value * row[u]
