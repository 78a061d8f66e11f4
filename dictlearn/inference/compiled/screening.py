"""One round of the working-set solver over a batch of rows: look, leave or grow, solve.

Legend: n rows of the chunk, m atoms, d width, s places of a working set; c correlations of all
atoms with the residual r, q those of the working set less the ridge, h its Gram matrix, p its
prices, a its codes, w the weights of the prices.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from dictlearn.inference.compiled import compiled
from dictlearn.inference.compiled.coordinate_descent import (
    dots,
    extend_gram,
    gather_gram,
    solve_local,
)
from dictlearn.inference.compiled.look import HELD, look, look_near, relative_gap, renew, widen

BINS = 512
KEEP = 0.9
"""Idle places whose correlation is below this share of their price are given up."""
LOOSE = 0.05
"""Share of the largest excess ratio to which a small problem is solved, before its own 0.2."""
NEAR, AGAIN = 12, 3
"""Of so many atoms one may be near its price, and so often, before a look at all is better."""


@compiled
def _drop(i: int, ratio: Any, sets: Any, p: Any) -> None:
    """Give up the idle places that are far from their price."""
    chosen, codes, q, h = sets.atoms[i], sets.codes[i], sets.q[i], sets.gram[i]
    k, filled = 0, 0
    kept = np.empty(sets.size[i], np.int64)
    for t in range(sets.size[i]):
        if codes[t] != 0 or abs(q[t]) > KEEP * p[t]:
            kept[k] = t
            k += 1
            filled += t < sets.filled[i]
        else:
            ratio[chosen[t]] = abs(q[t]) / p[t]
    if k < sets.size[i]:
        for u in range(k):
            t = kept[u]
            chosen[u], codes[u], q[u], p[u] = chosen[t], codes[t], q[t], p[t]
            if u < filled:
                for v in range(filled):
                    h[u, v] = h[t, kept[v]]
        for u in range(k, sets.size[i]):
            codes[u] = 0
    sets.size[i], sets.filled[i] = k, filled


@compiled
def _add(i: int, ratio: Any, wanted: int, largest: Any, sets: Any) -> None:
    """Add the atoms that exceed their price most, `wanted` at most; a histogram finds the cut."""
    found = np.empty(len(ratio), np.int64)
    k = 0
    for j in range(len(ratio)):
        found[k] = j
        k += ratio[j] > 1
    cut = 0
    step = ratio.dtype.type(BINS - 1) / max(largest - 1, ratio.dtype.type(1e-9))
    if k > wanted:
        counts = np.zeros(BINS, np.int64)
        for u in range(k):
            counts[min(BINS - 1, int((ratio[found[u]] - 1) * step))] += 1
        total, cut = 0, BINS
        while cut > 0 and total + counts[cut - 1] <= wanted:
            cut -= 1
            total += counts[cut]
    size = sets.size[i]
    last = size + wanted
    for least in (cut, 0):
        for u in range(k):
            j = found[u]
            if size < last and ratio[j] > 1 and int((ratio[j] - 1) * step) >= least:
                sets.atoms[i, size] = j
                sets.codes[i, size] = 0
                ratio[j] = HELD
                size += 1
        if size > sets.size[i]:
            break
    sets.size[i] = size


def _advance(
    rows: Any,
    c: Any,
    r: Any,
    problem: Any,
    sets: Any,
    grow: int,
    slack: Any,
    tolerance: Any,
    last: bool,
) -> None:
    """Take one round with the rows `rows: [b]` of a chunk.

    Rows whose gap is at most `tolerance` are left as they are; `sets.gap` tells.

    Args:
        rows: places in the chunk.
        c: correlations `[b, m]` of all atoms with the residuals: floats, or bfloat16 as int16.
        r: residuals `[b, d]`, replaced by those after the round.
        problem: what is solved.
        sets: where the rows stand.
        grow: atoms added at most.
        slack: bound of the errors of `c`, see `_look`; 0 if it is as good as the dtype.
        tolerance: largest allowed gap.
        last: whether to look only.
    """
    for b in numba.prange(len(rows)):
        # One call is all there is here: a write to a field of a tuple in the loop itself was lost
        # (numba 0.68.1: the gaps were never written).
        _round(rows[b], c[b], r[b], problem, sets, grow, slack, tolerance, last)


@compiled
def _round(
    i: int,
    c: Any,
    r: Any,
    problem: Any,
    sets: Any,
    grow: int,
    slack: Any,
    tolerance: Any,
    last: bool,
) -> None:
    """Take one round with a row; see `_advance`."""
    s = sets.atoms.shape[1]
    ratio = np.empty(len(c), r.dtype)
    p = np.empty(s, r.dtype)
    widen(c, ratio)
    largest = look(ratio, i, problem, sets, r, p, slack)
    gap = relative_gap(i, problem, sets, r, p, largest)
    if gap <= tolerance and slack > 0:
        renew(i, problem, sets, r)  # the certificate is of the codes, not of what is remembered
        gap = relative_gap(i, problem, sets, r, p, largest)
    sets.gap[i] = gap
    if gap > tolerance and not last:
        _drop(i, ratio, sets, p)
        old = sets.size[i]
        _add(i, ratio, min(grow, s - old), largest, sets)
        # Far from the end, what is left out costs more than what is not solved to the last digit.
        enough = max(tolerance, r.dtype.type(LOOSE) * (largest - 1))
        _grow(i, ratio, problem, sets, r, p, old, slack, enough, tolerance)


@compiled
def _grow(
    i: int,
    ratio: Any,
    problem: Any,
    sets: Any,
    r: Any,
    p: Any,
    old: int,
    slack: Any,
    enough: Any,
    tolerance: Any,
) -> None:
    """Solve, and certify or grow without a look at all atoms, while few can be at their price."""
    near = np.empty(len(ratio) // NEAR + 1, np.int64)
    excess, seen = np.empty(len(near), r.dtype), r.copy()
    for again in range(AGAIN + 1):
        _solve(i, problem, sets, r, p, old, enough)
        if again == AGAIN:
            return
        count = look_near(ratio, i, problem, r, seen, slack, near, excess)
        if count < 0:
            return
        largest = r.dtype.type(1)
        for u in range(count):
            largest = max(largest, excess[u])
        renew(i, problem, sets, r)
        sets.gap[i] = relative_gap(i, problem, sets, r, p, largest)
        if sets.gap[i] <= tolerance:
            return
        old, enough = sets.size[i], tolerance
        for u in range(count):
            size = sets.size[i]
            if excess[u] > 1 and size < len(p):
                sets.atoms[i, size], sets.codes[i, size] = near[u], 0
                ratio[near[u]] = HELD
                sets.size[i] = size + 1


@compiled
def _solve(i: int, problem: Any, sets: Any, r: Any, p: Any, old: int, tolerance: Any) -> None:
    """Solve a row's small problem, whose places from `old` on are new, and renew its residual."""
    weights = problem.weights[min(i, len(problem.weights) - 1)]
    chosen, size, codes, q = sets.atoms[i], sets.size[i], sets.codes[i], sets.q[i]
    dots(problem.atoms, r, chosen, old, size, q)
    for t in range(old, size):
        p[t] = problem.price[i] * weights[chosen[t]]
    if len(problem.gram) > 1:
        gather_gram(sets.gram[i], chosen, sets.filled[i], size, problem.gram, problem.ridge)
    else:
        extend_gram(sets.gram[i], chosen, sets.filled[i], size, problem.atoms, problem.ridge)
    sets.filled[i] = size
    floor = r.dtype.type(2e-6 if r.itemsize == 4 else 1e-14)
    solve_local(
        sets.gram[i], q, p, codes, size, problem.signed, max(r.dtype.type(0.2) * tolerance, floor)
    )
    x = problem.x[i]
    for e in range(len(r)):
        r[e] = x[e]
    for t in range(size):
        code = codes[t]
        if code != 0:
            row = problem.atoms[chosen[t]]
            for e in range(len(r)):
                r[e] -= code * row[e]


advance = compiled(_advance)
advance_in_parallel = compiled(_advance, parallel=True)
