"""What the compiled working-set solver works on, as arrays of numpy.

Legend: n rows of the chunk, m atoms, d width, s places of a working set.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from dictlearn.inference.compiled import compiled


class Problem(NamedTuple):
    """What does not change from round to round; arrays of numpy.

    Attributes:
        x: `[n, d]`.
        atoms: `[m, d]`.
        gram: `[m, m]`, or `[1, 1]` when there is none.
        price: `[n]`.
        weights: of the prices, `[1, m]` or `[n, m]`.
        worths: 1 / weights.
        ridge: price of half a squared code.
        signed: whether codes may be negative.
    """

    x: Any
    atoms: Any
    gram: Any
    price: Any
    weights: Any
    worths: Any
    ridge: Any
    signed: bool


class Sets(NamedTuple):
    """Where every row stands; arrays of numpy, changed in place.

    Attributes:
        atoms: of the working set, int64 `[n, s]`.
        codes: `[n, s]`, zero beyond the row's size.
        q: correlations with the residual less the ridge, `[n, s]`, where the Gram matrix is known.
        gram: `[n, s, s]`.
        size: places in use, int64 `[n]`.
        filled: places whose Gram matrix is known, int64 `[n]`.
        gap: relative duality gap, `[n]`.
    """

    atoms: Any
    codes: Any
    q: Any
    gram: Any
    size: Any
    filled: Any
    gap: Any


@compiled
def pack(sets: Any, n_atoms: int, values: Any, indices: Any) -> None:
    """Write every row's codes that are not zero, then zeros at other, distinct atoms."""
    k = values.shape[1]
    for i in range(len(values)):
        used = np.zeros(n_atoms, np.bool_)
        place = 0
        for t in range(sets.size[i]):
            if sets.codes[i, t] != 0:
                values[i, place], indices[i, place] = sets.codes[i, t], sets.atoms[i, t]
                used[sets.atoms[i, t]] = True
                place += 1
        j = 0
        while place < k:
            if not used[j]:
                values[i, place], indices[i, place] = 0, j
                place += 1
            j += 1
