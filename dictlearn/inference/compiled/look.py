"""A look at all atoms with a row's residual, or at those near their price, and the certificate.

Legend: as in `screening`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dictlearn.inference.compiled import compiled
from dictlearn.inference.compiled.coordinate_descent import dots

HELD = np.float32(-1e30)
"""In place of the excess ratio of atoms of the working set."""


@compiled
def widen(c: Any, out: Any) -> None:
    """Copy correlations; those in int16 are the bits of bfloat16, the upper half of a float32."""
    if c.itemsize == 2:
        bits = out.view(np.uint32)
        for j in range(len(c)):
            bits[j] = np.uint32(np.uint16(c[j])) << np.uint32(16)
    else:
        for j in range(len(c)):
            out[j] = c[j]


@compiled
def largest_of(c: Any) -> Any:
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
def renew(i: int, problem: Any, sets: Any, r: Any) -> None:
    """Compute the correlations of the working set with the residual itself."""
    size, q = sets.size[i], sets.q[i]
    dots(problem.atoms, r, sets.atoms[i], 0, size, q)
    for t in range(size):
        q[t] -= problem.ridge * sets.codes[i, t]


@compiled
def look_near(
    ratio: Any, i: int, problem: Any, r: Any, seen: Any, slack: Any, near: Any, excess: Any
) -> Any:
    """Look at the atoms whose price the residual can have reached since it was `seen`.

    An atom's correlation has changed by `|r - seen|` at most. Writes these atoms and their excess
    ratios, and returns how many they are; -1 if more than there are places for.

    Args:
        ratio: excess ratios of all atoms with the residual `seen`, far below 0 for those held.
        i: the row.
        problem: what is solved.
        r: the residual `[d]`.
        seen: the residual of the last look at all atoms `[d]`.
        slack: see `look`.
        near: atoms, overwritten.
        excess: their ratios, overwritten.
    """
    worths = problem.worths[min(i, len(problem.worths) - 1)]
    energy, change = r.dtype.type(0), r.dtype.type(0)
    for e in range(len(r)):
        energy += seen[e] * seen[e]
        change += (r[e] - seen[e]) * (r[e] - seen[e])
    per_price = r.dtype.type(1) / problem.price[i]
    reach = (slack * np.sqrt(energy) + np.sqrt(change)) * per_price * largest_of(worths)
    least = (1 - reach) / (1 + slack)
    count = 0
    for j in range(len(ratio)):
        count += ratio[j] > least
    if count > len(near) - 1:
        return -1
    count = 0
    for j in range(len(ratio)):
        near[count] = j
        count += ratio[j] > least
    dots(problem.atoms, r, near, 0, count, excess)
    for u in range(count):
        exact = abs(excess[u]) if problem.signed else excess[u]
        excess[u] = exact * per_price * worths[near[u]]
    return count


@compiled
def look(c: Any, i: int, problem: Any, sets: Any, r: Any, p: Any, slack: Any) -> Any:
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
        renew(i, problem, sets, r)
    if problem.signed:
        for j in range(len(c)):
            c[j] = abs(c[j])
    for j in range(len(c)):
        c[j] *= per_price * worths[j]
    for t in range(size):
        p[t] = price * weights[chosen[t]]
        c[chosen[t]] = HELD
    largest = largest_of(c)
    if slack == 0:
        return largest
    norm = zero
    for e in range(len(r)):
        norm += r[e] * r[e]
    error = slack * np.sqrt(norm) * per_price * largest_of(worths)
    if largest * (1 - slack) - error > 1:
        return largest * (1 + slack) + error
    largest = r.dtype.type(1)
    near, excess = np.empty(len(c) + 1, np.int64), np.empty(len(c) + 1, r.dtype)
    for u in range(look_near(c, i, problem, r, r, slack, near, excess)):
        c[near[u]] = excess[u]
        largest = max(largest, excess[u])
    return largest


@compiled
def relative_gap(i: int, problem: Any, sets: Any, r: Any, p: Any, largest: Any) -> Any:
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
