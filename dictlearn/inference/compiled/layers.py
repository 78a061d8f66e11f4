"""Unrolled layers on a few candidates per row, one row after the other.

The atoms of a row's candidates stay in the cache while all its layers run, where the torch path
reads them anew for every layer.

Legend: n rows, m atoms, d width, k kept codes per row, c candidates per row, T layers.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from dictlearn.inference.compiled import compiled

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

HALVINGS = 32
"""Scores that differ by less than 2^-32 of the largest count as equal."""

ROUNDING, TINY = np.float32(4e-11), np.float32(1e-30)
"""Share of the first squared slope below which it is rounding errors, and what is divided by."""


@compiled
def _match(start: Any, places: Any, near: Any, values: Any) -> None:
    """Write the codes of the candidates among given codes, and zeros elsewhere."""
    values[:] = 0
    for i in range(len(start)):
        value, place = start[i], places[i]
        if value != 0:
            for j in range(len(near)):
                values[j] += value if near[j] == place else np.float32(0)


@compiled
def _subtract(x: Any, synthesis: Any, near: Any, values: Any, residual: Any) -> None:
    """Write `x` less what the codes decode to, four atoms at once: memory is what costs."""
    residual[:] = x
    active = np.nonzero(values)[0]
    q = len(active)
    for first in range(0, q - 3, 4):
        u, v, w, z = active[first : first + 4]
        a, b, e, f = synthesis[near[u]], synthesis[near[v]], synthesis[near[w]], synthesis[near[z]]
        p, r, s, t = values[u], values[v], values[w], values[z]  # else read anew in the loop
        for i in range(len(x)):
            residual[i] -= p * a[i] + r * b[i] + s * e[i] + t * f[i]
    for left in range(q - q % 4, q):
        u = active[left]
        a = synthesis[near[u]]
        for i in range(len(x)):
            residual[i] -= values[u] * a[i]


@compiled
def _correlate(residual: Any, weight: Any, near: Any, scores: Any) -> None:
    """Write the candidates' correlations with the residual."""
    c = len(near)
    for j in range(0, c - 3, 4):
        u, v, w, z = weight[near[j]], weight[near[j + 1]], weight[near[j + 2]], weight[near[j + 3]]
        a = b = e = f = np.float32(0)
        for i in range(len(residual)):
            a += residual[i] * u[i]
            b += residual[i] * v[i]
            e += residual[i] * w[i]
            f += residual[i] * z[i]
        scores[j], scores[j + 1], scores[j + 2], scores[j + 3] = a, b, e, f
    for j in range(c - c % 4, c):
        u = weight[near[j]]
        a = np.float32(0)
        for i in range(len(residual)):
            a += residual[i] * u[i]
        scores[j] = a


@compiled
def _keep_largest(scores: Any, k: int, values: Any) -> None:
    """Copy the `k` largest of non-negative scores to `values`, and zeros elsewhere.

    The k-th largest is bracketed by halving: counting is vectorised, partitioning is not.
    """
    least, above = np.float32(0), np.float32(0)
    for j in range(len(scores)):
        above = max(above, scores[j])
    above *= np.float32(1.001)
    for _ in range(HALVINGS):
        middle = np.float32(0.5) * (least + above)
        count = 0
        for j in range(len(scores)):
            count += scores[j] >= middle
        if count >= k:
            least = middle
        else:
            above = middle
        if count == k:
            break
    # Between least and above there is at most one value, which may occur more than once.
    taken = 0
    for j in range(len(scores)):
        values[j] = scores[j] if scores[j] >= above else np.float32(0)
        taken += scores[j] >= above
    for j in range(len(scores)):
        if taken < k and least <= scores[j] < above:
            values[j] = scores[j]
            taken += 1


def _restricted_layers(
    x: Floats,
    matrices: tuple[Floats, Floats],
    steps: Floats,
    thresholds: Floats,
    kept: Integers,
    candidates: Integers,
    start: tuple[Floats, Integers],
    left: Floats,
    first: Floats,
    last: bool,
) -> Floats:
    """Return the codes of the candidates after T layers, `[n, c]`.

    Args:
        x: `[n, d]`.
        matrices: for analysis and for synthesis, `[m, d]`.
        steps: step sizes `[T]`.
        thresholds: `[T, m]`.
        kept: how many codes every layer keeps, `[T]`.
        candidates: `[n, c]`.
        start: codes that the first layer starts from, `[n, p]`, and their atoms, distinct within
            a row; codes of atoms that are no candidates are dropped.
        left: `x` less what all of them decode to, `[n, d]`; what the codes that are returned
            leave of `x` is written there.
        first: scores of the first layer that are known, `[n, c]`, or none, `[n, 0]`.
        last: whether nobody asks for `left` afterwards, so that it need not be written.
    """
    n, c = candidates.shape
    weight, synthesis = matrices
    given, places = start
    codes = np.empty((n, c), np.float32)
    known = first.shape[1] == c
    for row in numba.prange(n):
        near, values = candidates[row], codes[row]
        residual, scores = left[row], np.empty(c, np.float32)
        if not known:
            _match(given[row], places[row], near, values)
        for t in range(len(steps)):
            if known and t == 0:
                for j in range(c):
                    scores[j] = max(first[row, j], np.float32(0))
            else:
                _correlate(residual, weight, near, scores)
                for j in range(c):
                    score = values[j] + steps[t] * scores[j] - thresholds[t, near[j]]
                    scores[j] = max(score, np.float32(0))
            _keep_largest(scores, kept[t], values)
            if not last or t < len(steps) - 1:
                _subtract(x[row], synthesis, near, values, residual)
    return codes


restricted_layers = compiled(_restricted_layers, parallel=True)


def _conjugate(x: Floats, synthesis: Floats, indices: Integers, codes: Floats, steps: int) -> None:
    """Take steps of conjugate gradients on the supports of codes, and clear what is negative then.

    Args:
        x: `[n, d]`.
        synthesis: `[m, d]`.
        indices: `[n, k]`.
        codes: `[n, k]`, changed in place; zeros are no part of the support.
        steps: how many.
    """
    for row in numba.prange(len(x)):
        active = np.nonzero(codes[row])[0]
        q, d = len(active), x.shape[1]
        near, values = indices[row][active], codes[row][active]
        residual, change = np.empty(d, np.float32), np.empty(d, np.float32)
        descent, direction = np.empty(q, np.float32), np.zeros(q, np.float32)
        _subtract(x[row], synthesis, near, values, residual)
        before = least = np.float32(0)
        for step in range(steps):
            _correlate(residual, synthesis, near, descent)
            size = np.float32(0)
            for j in range(q):
                size += descent[j] * descent[j]
            if step == 0:
                least = ROUNDING * size
            if size <= least:
                break
            share = size / before if step > 0 else np.float32(0)
            for j in range(q):
                direction[j] = descent[j] + share * direction[j]
            change[:] = 0
            _subtract(change, synthesis, near, direction, change)
            square = np.float32(0)
            for i in range(d):
                square += change[i] * change[i]
            length = size / max(square, TINY)
            for j in range(q):
                values[j] += length * direction[j]
            for i in range(d):
                residual[i] += length * change[i]
            before = size
        for j in range(q):
            codes[row, active[j]] = max(values[j], np.float32(0))


conjugate = compiled(_conjugate, parallel=True)
