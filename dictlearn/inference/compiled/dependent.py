"""Active atoms of which some are sums of others, as where there are more of them than the width.

Their codes are not unique given what they decode to; the cheapest among them are found as by the
simplex method: trade an atom for the others that sum to it, or these for it.

Legend: as in `coordinate_descent`; n atoms held, w the codes with which they sum to another.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dictlearn.inference.compiled import compiled
from dictlearn.inference.compiled.active_set import drop, insert


@compiled
def part(h: Any, q: Any, p: Any, a: Any, size: Any, least: Any) -> None:
    """Set codes to zero, never uphill, until the active atoms are independent of each other.

    An atom whose trade for others has its best between two zeros stays; `least` is the smallest
    share of an atom's energy that must be new.
    """
    inverse, held = np.empty((size, size)), np.empty(size, np.int64)
    g, w, unused = np.empty(size), np.empty(size), np.zeros((2, size))
    n = 0
    for t in range(size):
        while a[t] != 0:
            for u in range(n):
                g[u] = h[t, held[u]]
            if insert(inverse, w, g, float(h[t, t]), n, float(least)):
                held[n] = t
                n += 1
                break
            place = _trade(h, q, p, a, size, held, w, n, t)
            if place < 0:
                break
            if place < n:
                drop(inverse, held, unused[0], unused[1], place, n)
                n -= 1


@compiled
def _trade(h: Any, q: Any, p: Any, a: Any, size: Any, held: Any, w: Any, n: Any, extra: Any) -> Any:
    """Trade the atom `extra` for the sum of those held, or these for it, whichever is cheaper.

    The decoded row stays while the price falls, until a code is zero or, as the sum is not quite
    the atom, the objective is least. Returns whose code reached zero, `n` for `extra`, -1 if none.
    """
    held[n] = extra
    slope, curvature = 0.0, 0.0
    for i in range(n + 1):
        t = held[i]
        w[i] = 1.0 if i == n else -w[i]
        slope += w[i] * ((p[t] if a[t] > 0 else -p[t]) - q[t])
    way = -1.0 if slope > 0 else 1.0
    g = np.zeros(size, q.dtype)
    for i in range(n + 1):
        w[i] *= way
        step, row = q.dtype.type(w[i]), h[held[i]]
        for u in range(size):
            g[u] += step * row[u]
    share, place = np.inf, -1
    for i in range(n + 1):
        t = held[i]
        curvature += w[i] * g[t]
        if w[i] * a[t] < 0 and -a[t] / w[i] < share:
            share, place = -a[t] / w[i], i
    if abs(slope) < share * curvature:
        share, place = abs(slope) / curvature, -1
    if share == np.inf:
        return -1
    for i in range(n + 1):
        t = held[i]
        a[t] = 0 if i == place else a[t] + share * w[i]
    for u in range(size):
        q[u] -= q.dtype.type(share) * g[u]
    return place
