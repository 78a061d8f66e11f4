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

BINS = 512
KEEP = 0.9
"""Idle places whose correlation is below this share of their price are given up."""
LOOSE = 0.05
"""Share of the largest excess ratio to which a small problem is solved, before its own 0.2."""


@compiled
def _widen(c: Any, out: Any) -> None:
    """Copy correlations; those in int16 are the bits of bfloat16, the upper half of a float32."""
    if c.itemsize == 2:
        bits = out.view(np.uint32)
        for j in range(len(c)):
            bits[j] = np.uint32(np.uint16(c[j])) << np.uint32(16)
    else:
        for j in range(len(c)):
            out[j] = c[j]


@compiled
def _largest(c: Any) -> Any:
    """Return the largest of values, or 0 if none is positive.

    As integers the bits of positive floats are in the same order, and a loop over those runs in
    vector registers, which one over floats does not.
    """
    if c.itemsize == 4:
        narrow, top = c.view(np.int32), np.int32(0)
        for j in range(len(narrow)):
            top = max(top, narrow[j])
        return np.full(2, top).view(c.dtype)[0]
    wide, most = c.view(np.int64), np.int64(0)
    for j in range(len(wide)):
        most = max(most, wide[j])
    return np.full(1, most).view(c.dtype)[0]


@compiled
def _renew(i: int, problem: Any, sets: Any, r: Any) -> None:
    """Compute the correlations of the working set with the residual itself."""
    size, q = sets.size[i], sets.q[i]
    dots(problem.atoms, r, sets.atoms[i], 0, size, q)
    for t in range(size):
        q[t] -= problem.ridge * sets.codes[i, t]


@compiled
def _look(c: Any, i: int, problem: Any, sets: Any, r: Any, p: Any, slack: Any) -> Any:
    """Write `q` and `p`, turn `c` into excess ratios of the other atoms, return their largest.

    `slack` is by how much a correlation may be wrong, as a share of `|r|` and of itself. If it
    matters for the certificate, correlations near their price are computed anew.
    """
    weights = problem.weights[min(i, len(problem.weights) - 1)]
    worths = problem.worths[min(i, len(problem.worths) - 1)]
    chosen, size, q, price = sets.atoms[i], sets.size[i], sets.q[i], problem.price[i]
    zero = r.dtype.type(0)
    per_price = r.dtype.type(1) / price
    if slack == 0:
        for t in range(size):
            q[t] = c[chosen[t]] - problem.ridge * sets.codes[i, t]
    elif sets.filled[i] < size:  # else the small problem has left them
        _renew(i, problem, sets, r)
    if problem.signed:
        for j in range(len(c)):
            c[j] = abs(c[j])
    for j in range(len(c)):
        c[j] *= per_price * worths[j]
    for t in range(size):
        p[t] = price * weights[chosen[t]]
        c[chosen[t]] = r.dtype.type(-1e30)
    largest = _largest(c)
    if slack == 0:
        return largest
    norm = zero
    for e in range(len(r)):
        norm += r[e] * r[e]
    error = slack * np.sqrt(norm) * per_price * _largest(worths)
    if largest * (1 - slack) - error > 1:
        return largest * (1 + slack) + error
    largest = r.dtype.type(1)
    place, value = np.empty(1, np.int64), np.empty(1, r.dtype)
    for j in range(len(c)):
        if c[j] * (1 + slack) + error > 1:
            place[0] = j
            dots(problem.atoms, r, place, 0, 1, value)
            exact = abs(value[0]) if problem.signed else value[0]
            c[j] = exact * per_price * worths[j]
            largest = max(largest, c[j])
    return largest


@compiled
def _gap(i: int, problem: Any, sets: Any, r: Any, p: Any, largest: Any) -> Any:
    """Return the relative duality gap; see `duality_gap`."""
    q, zero = sets.q[i], r.dtype.type(0)
    energy, fit, cost = zero, zero, zero
    for e in range(len(r)):
        energy += r[e] * r[e]
    for t in range(sets.size[i]):
        code = sets.codes[i, t]
        energy += problem.ridge * code * code
        fit += code * q[t]
        cost += p[t] * abs(code)
        largest = max(largest, (abs(q[t]) if problem.signed else q[t]) / p[t])
    value = r.dtype.type(0.5) * energy + cost
    if value <= r.dtype.type(1e-30):
        return zero
    s = max(zero, (energy + fit) / max(energy, r.dtype.type(1e-30)))
    if s * largest > 1:
        s = 1 / largest
    gap = r.dtype.type(0.5) * (1 - s) * (1 - s) * energy + cost - s * fit
    return max(gap, zero) / value


@compiled
def _drop(i: int, sets: Any, p: Any) -> None:
    """Give up the idle places that are far from their price."""
    chosen, codes, q, h = sets.atoms[i], sets.codes[i], sets.q[i], sets.gram[i]
    k, filled = 0, 0
    kept = np.empty(sets.size[i], np.int64)
    for t in range(sets.size[i]):
        if codes[t] != 0 or abs(q[t]) > KEEP * p[t]:
            kept[k] = t
            k += 1
            filled += t < sets.filled[i]
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
                ratio[j] = -1
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
    _widen(c, ratio)
    largest = _look(ratio, i, problem, sets, r, p, slack)
    gap = _gap(i, problem, sets, r, p, largest)
    if gap <= tolerance and slack > 0:
        _renew(i, problem, sets, r)  # the certificate is of the codes, not of what is remembered
        gap = _gap(i, problem, sets, r, p, largest)
    sets.gap[i] = gap
    if gap > tolerance and not last:
        _drop(i, sets, p)
        old = sets.size[i]
        _add(i, ratio, min(grow, s - old), largest, sets)
        # Far from the end, what is left out costs more than what is not solved to the last digit.
        enough = max(tolerance, r.dtype.type(LOOSE) * (largest - 1))
        _solve(i, problem, sets, r, p, old, enough)


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
