"""Least squares on the support of every row, one row after the other.

Legend: n rows, m atoms, d width, K slots per row, q = correlations with the residual.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dictlearn.inference.compiled import compiled
from dictlearn.inference.compiled.active_set import Floats, aim, insert, settle

Array = NDArray[np.floating]
Atoms = NDArray[np.int64]


@compiled
def dot(left: Array, right: Array) -> float:
    """Return the inner product of two rows."""
    total = left[0] * right[0]
    for j in range(1, len(left)):
        total += left[j] * right[j]
    return float(total)


@compiled
def leave(x: Array, atoms: Array, held: Atoms, a: Floats, size: int, residual: Floats) -> None:
    """Write `residual = x - a Phi`, in float64."""
    d = len(x)
    for j in range(d):
        residual[j] = x[j]
    for u in range(size):
        code, atom = a[u], atoms[held[u]]
        for j in range(d):
            residual[j] -= code * atom[j]


@compiled
def correlate(atoms: Array, held: Atoms, size: int, residual: Floats, q: Floats) -> None:
    """Write `q = residual Phi^T` of the atoms held, in float64."""
    for u in range(size):
        atom, total = atoms[held[u]], 0.0
        for j in range(len(residual)):
            total += residual[j] * atom[j]
        q[u] = total


@compiled
def hold(
    atoms: Array,
    held: Atoms,
    size: int,
    atom: int,
    scratch: tuple[Floats, Floats, Floats],
    independent: float,
) -> bool:
    """Add an atom to the inverse; False if it depends on those held.

    Args:
        atoms: `[m, d]`.
        held: those held, in front.
        size: how many there are.
        atom: the new one.
        scratch: inverse `[K, K]`, and two rows `[K]`.
        independent: smallest share of the atom's energy that must be new.
    """
    inverse, work, g = scratch
    new = atoms[atom]
    for u in range(size):
        g[u] = dot(atoms[held[u]], new)
    if insert(inverse, work, g, dot(new, new), size, independent):
        held[size] = atom
        return True
    return False


@compiled
def refit(
    x: Array, atoms: Array, indices: Atoms, limits: tuple[float, float], signed: bool, values: Array
) -> None:
    """Replace the codes by the least squares on their support; see `dictlearn.inference.refit`.

    Args:
        x: `[n, d]`.
        atoms: `[m, d]`.
        indices: `[n, K]`; a slot is in the support where its code is not 0.
        limits: smallest correlation, as a share of `|x|`, that brings an atom back, and smallest
            share of an atom's energy outside the span of the others that keeps it.
        signed: whether codes may be negative.
        values: codes `[n, K]`, overwritten.
    """
    k = values.shape[1]
    residual, inverse, held = np.zeros(x.shape[1]), np.zeros((k, k)), np.zeros(k, np.int64)
    a, q, target, work, g = np.zeros(k), np.zeros(k), np.zeros(k), np.zeros(k), np.zeros(k)
    scratch = (inverse, work, g)
    for i in range(len(x)):
        size, n_wanted = 0, 0
        for t in range(k):
            if values[i, t] != 0.0:
                # Those held stand in front, those refused or dropped behind them.
                held[n_wanted] = held[size]
                if hold(atoms, held, size, indices[i, t], scratch, limits[1]):
                    a[size] = values[i, t]
                    size += 1
                else:
                    held[n_wanted] = indices[i, t]
                n_wanted += 1
        leave(x[i], atoms, held, a, size, residual)
        correlate(atoms, held, size, residual, q)
        if signed:
            aim(inverse, a, q, target, size)
            a[:size] = target[:size]
            n_wanted = size
        else:
            size = settle(inverse, held, a, q, target, size)
        floor = limits[0] * np.sqrt(dot(x[i], x[i]))
        for _ in range(3 * k):
            if size == n_wanted:
                break
            leave(x[i], atoms, held, a, size, residual)
            correlate(atoms, held, n_wanted, residual, q)
            best = size + np.argmax(q[size:n_wanted])
            if not q[best] > floor:
                break
            held[size], held[best] = held[best], held[size]
            a[size], q[size] = 0.0, q[best]
            if hold(atoms, held, size, held[size], scratch, limits[1]):
                size = settle(inverse, held, a, q, target, size + 1)
            else:
                n_wanted -= 1
                held[size], held[n_wanted] = held[n_wanted], held[size]
        leave(x[i], atoms, held, a, size, residual)
        correlate(atoms, held, size, residual, q)
        aim(inverse, a, q, target, size)
        for t in range(k):
            code = 0.0
            if values[i, t] != 0.0:
                for u in range(size):
                    if held[u] == indices[i, t]:
                        code = target[u] if signed else max(target[u], 0.0)
            values[i, t] = code
