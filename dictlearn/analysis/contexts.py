"""The places in a text where a factor is strongest, and its codes on the tokens around them."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from dictlearn.analysis.code_table import CodeTable, Floats, Integers

CANDIDATES = 40
"""How many of the strongest codes are looked through per wanted context."""


def strongest(
    table: CodeTable, atom: int, layer: int, count: int, per_document: int = 2
) -> tuple[Integers, Floats]:
    """Return the strongest rows of a factor at a layer, not one sentence five times.

    A text (two tokens to each side) is shown once, a document `per_document` times; when that
    leaves places empty, they go to the next strongest different texts of the same documents.

    Args:
        table: the codes of a text.
        atom: row of the dictionary.
        layer: index into `table.layers`.
        count: number of rows wanted.
        per_document: rows of one document while others are left.

    Returns:
        Rows `[c]` and codes `[c]`, strongest first, `c <= count`.
    """
    span = table.span(atom, layer)
    near = slice(span.start, min(span.stop, span.start + CANDIDATES * count))
    rows = table.row[near]
    chosen = _diverse(table.window_hash(rows), table.document[rows], count, per_document)
    return rows[chosen], table.value[near][chosen]


def _diverse(
    window: NDArray[np.uint64],
    document: Integers,
    count: int,
    per_document: int,
) -> Integers:
    _, firsts = np.unique(window, return_index=True)
    firsts.sort()
    used: Counter[int] = Counter()
    taken: list[int] = []
    passed_over: list[int] = []
    for place, name in zip(firsts.tolist(), document[firsts].tolist(), strict=True):
        if len(taken) == count:
            break
        full = used[name] >= per_document
        (passed_over if full else taken).append(place)
        used[name] += 1
    taken += passed_over[: count - len(taken)]
    return np.asarray(sorted(taken), np.int64)


def shading(table: CodeTable, atom: int, layer: int, rows: Integers, offsets: Integers) -> Floats:
    """Return the factor's codes at the tokens around some rows, same layer.

    Args:
        table: the codes of a text.
        atom: row of the dictionary.
        layer: index into `table.layers`; the layer of all `rows`.
        rows: `[c]`.
        offsets: distance of every token of the window from its row, `[t]`.

    Returns:
        `[c, t]`; 0 where the factor is silent or the token is not in the table.
    """
    span = table.span(atom, layer)
    order = np.argsort(table.row[span], kind="stable")
    active, codes = table.row[span][order], table.value[span][order]
    wanted = table.neighbours(rows, offsets)
    if len(active) == 0:
        return np.zeros(wanted.shape, np.float32)
    found = np.minimum(np.searchsorted(active, wanted), len(active) - 1)
    return np.where(active[found] == wanted, codes[found], np.float32(0.0))
