"""Least squares on a growing and shrinking set of atoms, for one row.

The inverse `H` of the Gram matrix of the atoms held is kept in float64 and changed by one row and
column at a time, which costs `t^2` and makes dropping an atom as cheap as adding one.

Legend: t atoms held, K slots, g inner products of an atom with those held, q correlations of the
atoms held with the residual, a their codes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dictlearn.inference.compiled import compiled

Floats = NDArray[np.float64]


@compiled
def insert(
    inverse: Floats, work: Floats, g: Floats, norm: float, size: int, tolerance: float
) -> bool:
    """Add an atom to the inverse; return False, and do nothing, if it depends on those held.

    With `h = H g` and the Schur complement `s = |phi|^2 - g h`, the inverse grows by
    `(h, -1) (h, -1)^T / s`.

    Args:
        inverse: `[K, K]`; `size` rows and columns are in use.
        work: `[K]`, overwritten by `h`.
        g: `[K]`.
        norm: `|phi|^2`.
        size: atoms held.
        tolerance: smallest share of `|phi|^2` that must be new.
    """
    schur = norm
    for u in range(size):
        total = 0.0
        for w in range(size):
            total += inverse[u, w] * g[w]
        work[u] = total
    for u in range(size):
        schur -= g[u] * work[u]
    if not schur > tolerance * norm:
        return False
    for u in range(size):
        scaled = work[u] / schur
        for w in range(size):
            inverse[u, w] += scaled * work[w]
        inverse[u, size] = -scaled
        inverse[size, u] = -scaled
    inverse[size, size] = 1.0 / schur
    return True


@compiled
def drop(
    inverse: Floats,
    atoms: NDArray[np.int64],
    a: Floats,
    target: Floats,
    p: int,
    size: int,
) -> None:
    """Exchange the atom in slot `p` for the last one, and take it out of the inverse.

    `target`, the least-squares codes with the atom, becomes those without it:
    `target - H[:, p] target_p / H_pp`.
    """
    share = 1.0 / inverse[p, p]
    change = target[p] * share
    for u in range(size):
        target[u] -= inverse[p, u] * change
    for u in range(size):
        if u != p:
            scaled = inverse[u, p] * share
            for w in range(size):
                inverse[u, w] -= scaled * inverse[p, w]
    last = size - 1
    if p != last:
        for u in range(size):
            inverse[p, u] = inverse[last, u]
        for u in range(size):
            inverse[u, p] = inverse[u, last]
        inverse[p, p] = inverse[last, last]
        atoms[p], atoms[last] = atoms[last], atoms[p]
        a[p], target[p] = a[last], target[last]


@compiled
def aim(inverse: Floats, a: Floats, q: Floats, target: Floats, size: int) -> None:
    """Write the least-squares codes `target = a + H q`: one Newton step, and it is exact."""
    for u in range(size):
        total = a[u]
        for w in range(size):
            total += inverse[u, w] * q[w]
        target[u] = total


@compiled
def settle(
    inverse: Floats,
    atoms: NDArray[np.int64],
    a: Floats,
    q: Floats,
    target: Floats,
    size: int,
) -> int:
    """Move `a >= 0` to the least-squares codes; drop the atoms that would turn negative.

    Returns:
        The number of atoms still held; all have positive codes. Those dropped follow them.
    """
    aim(inverse, a, q, target, size)
    return walk(inverse, atoms, a, target, size)


@compiled
def walk(inverse: Floats, atoms: NDArray[np.int64], a: Floats, target: Floats, size: int) -> int:
    """Move `a >= 0` towards `target`, the least-squares codes; see `settle`.

    The inner loop of Lawson & Hanson 1974, ch. 23: go as far as all codes stay non-negative,
    drop the one that became zero, aim anew.
    """
    while size > 0:
        p, share = -1, 2.0
        for u in range(size):
            if target[u] <= 0.0:
                ratio = a[u] / (a[u] - target[u]) if a[u] > 0.0 else 0.0
                if ratio < share:
                    p, share = u, ratio
        if p < 0:
            break
        for u in range(size):
            a[u] += share * (target[u] - a[u])
        drop(inverse, atoms, a, target, p, size)
        size -= 1
    for u in range(size):
        a[u] = target[u]
    return size
