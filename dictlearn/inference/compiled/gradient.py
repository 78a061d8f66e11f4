"""Gradient pursuit in Gram form, one row after the other.

Legend: n rows, m atoms, k slots per row, `G = Phi Phi^T: [m, m]`, `b = x Phi^T: [n, m]`,
c = correlations of all atoms with the residual of a row, a = codes held.
"""

from __future__ import annotations

import numpy as np

from dictlearn.inference.compiled import compiled
from dictlearn.inference.compiled.pursuit import LANES, NEVER, Array, Atoms, correlate, largest


@compiled
def ascend(local: Array, held: Atoms, a: Array, q: Array, size: int) -> int:
    """Go along the gradient `q` as far as it helps and all codes stay non-negative.

    Args:
        local: Gram matrix of the atoms held, `[k, k]`.
        held: their numbers.
        a: their codes.
        q: their correlations with the residual.
        size: how many there are.

    Returns:
        How many are left, in front.
    """
    square, energy, reach = 0.0, 0.0, -NEVER
    for u in range(size):
        total = 0.0
        for w in range(size):
            total += local[u, w] * q[w]
        square += q[u] * q[u]
        energy += q[u] * total
    length = square / energy
    for u in range(size):
        if q[u] < 0.0:
            reach = min(reach, -a[u] / q[u])
    length = min(length, reach)
    u = 0
    for u in range(size - 1, -1, -1):
        gone = q[u] < 0.0 and -a[u] / q[u] <= length
        a[u] = 0.0 if gone else a[u] + length * q[u]
        if gone:
            size -= 1
            held[u], a[u], q[u] = held[size], a[size], q[size]
            for w in range(size + 1):
                local[u, w] = local[size, w]
            for w in range(size + 1):
                local[w, u] = local[w, size]
            local[u, u] = local[size, size]
    return size


@compiled
def gradient_pursuit(b: Array, gram: Array, useful: float, values: Array, indices: Atoms) -> None:
    """Non-negative gradient pursuit; see `dictlearn.inference.gradient_pursuit`.

    Args:
        b: `[n, m]`.
        gram: `[m, m]`.
        useful: smallest useful correlation, as a share of the row's largest one.
        values: zeros `[n, k]`, filled.
        indices: -1 `[n, k]`, filled as far as there are codes.
    """
    k, m = values.shape[1], b.shape[1]
    c, lanes = np.empty(m, b.dtype), np.empty(LANES, b.dtype)
    a, held = np.zeros(k + 4, b.dtype), np.zeros(k + 4, np.int64)
    local, q = np.zeros((k, k), b.dtype), np.zeros(k, b.dtype)
    for i in range(len(b)):
        c[:] = b[i]
        floor, size = useful * c[largest(c, lanes)], 0
        for _ in range(4 * k + 4):
            for u in range(size):
                q[u] = c[held[u]]
                c[held[u]] = NEVER
            j = largest(c, lanes)
            if size == k or not c[j] > floor:
                break
            held[size], a[size], q[size] = j, 0.0, c[j]
            size += 1
            for u in range(size):
                local[u, size - 1] = local[size - 1, u] = gram[j, held[u]]
            size = ascend(local, held, a, q, size)
            a[size:], held[size:] = 0.0, 0
            correlate(c, b[i], gram, held, a, size)
        for u in range(size):
            values[i, u], indices[i, u] = a[u], held[u]
