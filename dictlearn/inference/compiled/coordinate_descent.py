"""The small problem of one row's working set, by coordinate descent and Newton steps.

Where the active atoms are sums of each other, Newton steps have no one aim and sweeps take
thousands: `part` first trades such atoms until those left are independent.

Legend: d width, t, u places of a working set, `size` of them in use, k active ones;
h its Gram matrix, q its correlations with the residual, p its prices, a its codes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dictlearn.inference.compiled import compiled
from dictlearn.inference.compiled.dependent import part

SWEEPS, TRIALS = 4, 100
"""Sweeps before a Newton step, and how often both are tried; some 25 were the most needed."""


@compiled
def dots(table: Any, r: Any, chosen: Any, first: Any, last: Any, out: Any) -> None:
    """Write `table[chosen] r` for the places from `first` to before `last`, four at a time."""
    zero = r.dtype.type(0)
    for t in range(first, last, 4):
        u, v, w = min(t + 1, last - 1), min(t + 2, last - 1), min(t + 3, last - 1)
        a0, a1, a2, a3 = table[chosen[t]], table[chosen[u]], table[chosen[v]], table[chosen[w]]
        x0, x1, x2, x3 = zero, zero, zero, zero
        for e in range(len(r)):
            x0 += a0[e] * r[e]
            x1 += a1[e] * r[e]
            x2 += a2[e] * r[e]
            x3 += a3[e] * r[e]
        out[t], out[u], out[v], out[w] = x0, x1, x2, x3


@compiled
def extend_gram(h: Any, chosen: Any, first: Any, last: Any, atoms: Any, ridge: Any) -> None:
    """Fill the rows and columns from `first` on, two by four products at a time."""
    zero = h.dtype.type(0)
    d = atoms.shape[1]
    t = first
    while t < last:
        two = t + 1 < last
        x, y = atoms[chosen[t]], atoms[chosen[t + 1 if two else t]]
        u = 0
        while u < t + 1 + two:
            v, w = min(u + 1, last - 1), min(u + 2, last - 1)
            z = min(u + 3, last - 1)
            a0, a1, a2, a3 = atoms[chosen[u]], atoms[chosen[v]], atoms[chosen[w]], atoms[chosen[z]]
            x0, x1, x2, x3, y0, y1, y2, y3 = zero, zero, zero, zero, zero, zero, zero, zero
            for e in range(d):
                xe, ye = x[e], y[e]
                x0 += xe * a0[e]
                x1 += xe * a1[e]
                x2 += xe * a2[e]
                x3 += xe * a3[e]
                y0 += ye * a0[e]
                y1 += ye * a1[e]
                y2 += ye * a2[e]
                y3 += ye * a3[e]
            h[t, u], h[t, v], h[t, w], h[t, z] = x0, x1, x2, x3
            if two:
                h[t + 1, u], h[t + 1, v], h[t + 1, w], h[t + 1, z] = y0, y1, y2, y3
            u += 4
        t += 2
    _mirror(h, first, last, ridge)


@compiled
def gather_gram(h: Any, chosen: Any, first: Any, last: Any, gram: Any, ridge: Any) -> None:
    """Fill the rows and columns from `first` on out of the whole Gram matrix `[m, m]`."""
    for t in range(first, last):
        row = gram[chosen[t]]
        for u in range(t + 1):
            h[t, u] = row[chosen[u]]
    _mirror(h, first, last, ridge)


@compiled
def _mirror(h: Any, first: Any, last: Any, ridge: Any) -> None:
    for t in range(first, last):
        for u in range(t):
            h[u, t] = h[t, u]
        h[t, t] += ridge


@compiled
def _sweep(h: Any, q: Any, p: Any, a: Any, size: Any, signed: Any) -> Any:
    """Minimise along every place in turn; return the largest change of a code."""
    zero = q.dtype.type(0)
    largest = zero
    for t in range(size):
        old = a[t]
        curvature = max(h[t, t], q.dtype.type(1e-12))
        point = q[t] + old * curvature
        new = zero
        if point > p[t]:
            new = (point - p[t]) / curvature
        elif signed and point < -p[t]:
            new = (point + p[t]) / curvature
        change = new - old
        if change != 0:
            a[t] = new
            row = h[t]
            for u in range(size):
                q[u] -= change * row[u]
            largest = max(largest, abs(change))
    return largest


@compiled
def _factor_and_solve(low: Any, z: Any, k: Any, least: Any) -> Any:
    """Replace `z` by the solution of `(L L^T) y = z`, where `low` holds the matrix's lower half.

    Cholesky; the diagonal holds the inverses of L's. An atom that hardly differs from the ones
    before has no pivot, and gets no change. Returns whether there are any.
    """
    one = z.dtype.type(1)
    dependent = False
    for j in range(k):
        row = low[j]
        pivot = row[j]
        for e in range(j):
            pivot -= row[e] * row[e]
        inverse = z.dtype.type(1e-12)
        if pivot > least:
            inverse = one / math.sqrt(pivot)
        else:
            dependent = True
        row[j] = inverse
        total = z[j]
        for e in range(j):
            total -= row[e] * z[e]
        z[j] = total * inverse
        for i in range(j + 1, k, 4):  # four products at a time share what they load
            u, v, w = min(i + 1, k - 1), min(i + 2, k - 1), min(i + 3, k - 1)
            r0, r1, r2, r3 = low[i], low[u], low[v], low[w]
            t0, t1, t2, t3 = r0[j], r1[j], r2[j], r3[j]
            for e in range(j):
                value = row[e]
                t0 -= r0[e] * value
                t1 -= r1[e] * value
                t2 -= r2[e] * value
                t3 -= r3[e] * value
            r0[j], r1[j], r2[j], r3[j] = t0 * inverse, t1 * inverse, t2 * inverse, t3 * inverse
    for j in range(k - 1, -1, -1):
        row = low[j]
        z[j] *= row[j]
        for e in range(j):
            z[e] -= z[j] * row[e]
    return dependent


@compiled
def _gather(h: Any, q: Any, p: Any, a: Any, size: Any, low: Any, active: Any, z: Any) -> Any:
    """Write the active places, their Gram matrix and slopes; return their number."""
    k = 0
    for t in range(size):
        if a[t] != 0:
            active[k] = t
            k += 1
    for i in range(k):
        t = active[i]
        row, lower = h[t], low[i]
        for j in range(i):
            lower[j] = row[active[j]]
        lower[i] = row[t]
        z[i] = q[t] - p[t] if a[t] > 0 else q[t] + p[t]
    return k


@compiled
def _newton(
    h: Any, q: Any, p: Any, a: Any, size: Any, low: Any, active: Any, z: Any, g: Any, least: Any
) -> Any:
    """Step to the minimum over the active codes' signs; return how many codes it cut to zero.

    Codes that would change sign are cut to zero; where that would go uphill, the step ends where
    the first one reaches zero.
    """
    k = _gather(h, q, p, a, size, low, active, z)
    dependent = _factor_and_solve(low, z, k, least)
    if dependent:
        part(h, q, p, a, size, least)
        k = _gather(h, q, p, a, size, low, active, z)
        _factor_and_solve(low, z, k, least)
    cut = 0
    share = q.dtype.type(1)
    for i in range(k):
        old = a[active[i]]
        if (old + z[i]) * old <= 0:
            cut += 1
            share = min(share, -old / z[i])
    if _descent(h, q, p, a, active, z, g, k, size) <= 0:
        for i in range(k):
            t = active[i]
            new = a[t] + z[i]
            a[t] = new if new * a[t] > 0 else q.dtype.type(0)
        for u in range(size):
            q[u] -= g[u]
    elif cut:
        _shorten(h, q, a, active, z, k, size, share)
    return cut


@compiled
def _shorten(h: Any, q: Any, a: Any, active: Any, z: Any, k: Any, size: Any, share: Any) -> None:
    """Step as far as the first code that reaches zero."""
    for i in range(k):
        t = active[i]
        old = a[t]
        new = old + share * z[i]
        if new * old <= old * old * q.dtype.type(1e-6):
            new = q.dtype.type(0)
        a[t] = new
        change, row = new - old, h[t]
        for u in range(size):
            q[u] -= change * row[u]


@compiled
def _descent(h: Any, q: Any, p: Any, a: Any, active: Any, z: Any, g: Any, k: Any, size: Any) -> Any:
    """Return by how much the objective changes with the cut step."""
    for u in range(size):
        g[u] = 0
    change = q.dtype.type(0)
    for i in range(k):
        t = active[i]
        step = z[i] if (a[t] + z[i]) * a[t] > 0 else -a[t]
        row = h[t]
        for u in range(size):
            g[u] += step * row[u]
    for i in range(k):
        t = active[i]
        step = z[i] if (a[t] + z[i]) * a[t] > 0 else -a[t]
        slope = p[t] - q[t] if a[t] > 0 else -p[t] - q[t]
        change += step * (slope + q.dtype.type(0.5) * g[t])
    return change


@compiled
def _missed(q: Any, p: Any, a: Any, size: Any, signed: Any) -> Any:
    """Return by which share a correlation misses its price, or exceeds it where no code is."""
    missed = q.dtype.type(0)
    for t in range(size):
        if a[t] != 0:
            missed = max(missed, abs(abs(q[t]) / p[t] - 1))
        else:
            missed = max(missed, (abs(q[t]) if signed else q[t]) / p[t] - 1)
    return missed


@compiled
def solve_local(h: Any, q: Any, p: Any, a: Any, size: Any, signed: Any, exact: Any) -> Any:
    """Minimise over a working set, in place; return the trials taken.

    Sweeps of coordinate descent find the support, a Newton step solves it; until no price is
    missed by more than the share `exact`. No step goes uphill.
    """
    low = np.empty((size, size), q.dtype)
    z, g = np.empty(size, q.dtype), np.empty(size, q.dtype)
    active = np.empty(size, np.int64)
    least = q.dtype.type(1e-4 if q.itemsize == 4 else 1e-10)
    for trial in range(TRIALS):
        for _ in range(SWEEPS):
            _sweep(h, q, p, a, size, signed)
        if _missed(q, p, a, size, signed) <= exact:
            return trial
        cut = _newton(h, q, p, a, size, low, active, z, g, least)
        if cut == 0 and _missed(q, p, a, size, signed) <= exact:
            return trial
    return TRIALS
