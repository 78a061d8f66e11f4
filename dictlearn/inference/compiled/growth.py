"""Atoms added to those held of one row, one after the other, each where it correlates most.

Legend: m atoms, t atoms held, s atoms listed, `G = Phi Phi^T: [m, m]`, `b = x Phi^T: [m]`,
c = correlations of all atoms with the residual, a = codes of the atoms held.
"""

from __future__ import annotations

import numpy as np

from dictlearn.inference.compiled import compiled
from dictlearn.inference.compiled.active_set import Floats, walk
from dictlearn.inference.compiled.pursuit import (
    LANES,
    NEVER,
    Array,
    Atoms,
    add,
    correlate,
    largest,
    refill,
)

Arrays = tuple[Array, Array, Array]
LISTED, FOR_EACH = 128, 8
"""Atoms listed: so many, or so many for each that is to be added. Half as many gain nothing."""
HALVINGS = 24


@compiled
def sheet(m: int, most: int, block: int, like: Array) -> tuple[Atoms, Atoms, Array, Array, Arrays]:
    """Return what `grow` works on: the list `[s]`, the atoms of the rows of `common: [t, s]`,
    correlations of the atoms listed, and what `correlate` and `largest` want.
    """  # noqa: D205
    n = min(m, max(LISTED, FOR_EACH * block))
    common, near = np.empty((most, n), like.dtype), np.empty(n, like.dtype)
    rest = np.empty(m, like.dtype), np.zeros(most + 4, like.dtype), np.empty(LANES, like.dtype)
    return np.empty(n, np.int64), np.empty(most, np.int64), common, near, rest


@compiled
def grow(
    b: Array,
    gram: Array,
    held: Atoms,
    size: int,
    most: int,
    scratch: tuple[Floats, ...],
    sheet: tuple[Atoms, Atoms, Array, Array, Arrays],
    limits: tuple[float, float],
) -> int:
    """Add the atom that correlates most and fit, until `most` are held or none is of use.

    An atom is looked for among those that correlated most when the list was made, and their part
    of the Gram matrix stays in the cache: to look at all `m` each time takes ten times as long.
    Where the best on the list is no better than what was left out, a new list is made.
    """
    inverse, a, q, target, _work, _g = scratch
    listed, rows, common, near, (c, short, lanes) = sheet
    n, left_out = 0, 0.0
    for _ in range(4 * most):
        if size == most:
            break
        made = n == 0
        if made:
            held[size:], short[size:], rows[:] = 0, 0.0, -1
            for u in range(size):
                short[u] = a[u]
            correlate(c, b, gram, held, short, size)
            for u in range(size):
                c[held[u]] = NEVER
            n, left_out = list_largest(c, limits[0], listed)
            if n == 0:
                break
        look(b, gram, held, a, size, listed[:n], rows, common, near)
        best = largest(near[:n], lanes)
        if not near[best] > left_out:
            if made:
                break
            n = 0
            continue
        if not add(gram, held, size, listed[best], scratch, limits[1]):
            break
        n -= 1
        replace(listed, rows, common, gram, best, listed[n])
        # The others are least squares already: only the new one pulls.
        q[size], size = near[best], size + 1
        for u in range(size):
            target[u] = a[u] + inverse[u, size - 1] * q[size - 1]
        left = walk(inverse, held, a, target, size)
        if left < size:
            before, size = size, refill(b, gram, held, left, size, scratch, limits)
            for t in range(size, min(before, size + len(listed) - n)):  # these may come back
                replace(listed, rows, common, gram, n, held[t])
                n += 1
    return size


@compiled
def look(
    b: Array,
    gram: Array,
    held: Atoms,
    a: Floats,
    size: int,
    listed: Atoms,
    rows: Atoms,
    common: Array,
    near: Array,
) -> None:
    """Write `near = b - a G` of the atoms listed; rows of `common` are brought up to date."""
    n = len(listed)
    for s in range(n):
        near[s] = b[listed[s]]
    for u in range(size):
        row = common[u]
        if rows[u] != held[u]:
            rows[u] = held[u]
            for s in range(n):
                row[s] = gram[held[u], listed[s]]
        share = b.dtype.type(a[u])
        for s in range(n):
            near[s] -= share * row[s]


@compiled
def replace(listed: Atoms, rows: Atoms, common: Array, gram: Array, place: int, j: int) -> None:
    """Put atom `j` on the list."""
    listed[place] = j
    for u in range(len(rows)):
        if rows[u] >= 0:
            common[u, place] = gram[rows[u], j]


@compiled
def list_largest(c: Array, least: float, listed: Atoms) -> tuple[int, float]:
    """List the atoms whose correlations are largest, half as many as there is room for or more.

    Returns:
        How many, and what the correlation of no other atom exceeds; `least` if those left out are
        of no use.
    """
    m, most = len(c), len(listed)
    low, high, threshold = least, least, least
    for j in range(m):
        high = max(high, c[j])
    for _ in range(HALVINGS):
        count = 0
        for j in range(m):
            count += c[j] > threshold
        if count > most:
            low = threshold
        elif 2 * count >= most or threshold == least:
            break
        else:
            high = threshold
        threshold = 0.5 * (low + high)
    floor = NEVER if m <= most else threshold  # room for all: also for what is of no use yet
    n = 0
    for j in range(m):
        if c[j] > floor and n < most:
            listed[n] = j
            n += 1
    return n, threshold
