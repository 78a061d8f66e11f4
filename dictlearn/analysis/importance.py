"""Where in the depth of the transformer a factor matters, and which factors to look at first.

Legend: m atoms, L layers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dictlearn.analysis.code_table import CodeTable, Integers

MIN_DOCUMENTS = 3
MIN_WINDOWS = 5
MAX_FIRING = 0.2


class Importance(NamedTuple):
    """How strongly every factor fires at every layer.

    Attributes:
        score: importance score IS_c^(l), float64 `[m, L]`.
        firing: share of the layer's hidden states with a positive code, `[m, L]`.
        peak: index of the layer with the largest score, -1 for a factor that never fires, `[m]`.
        spread: over how many layers the score is spread (exp of its entropy), 1..L; 0 for a factor
            that never fires, `[m]`.
    """

    score: NDArray[np.float64]
    firing: NDArray[np.float64]
    peak: Integers
    spread: NDArray[np.float64]


def importance(table: CodeTable, top: int) -> Importance:
    """Return the importance score of every atom at every layer, and what follows from it.

    ``IS_c^(l)`` is the mean of the `top` largest codes of atom c at layer l (importance score,
    Yun et al. 2021, "Transformer visualization via dictionary learning"). Silent hidden states
    count as 0; with fewer than `top` hidden states the mean is over all of them.

    Args:
        table: the codes of a text.
        top: number of largest codes in the mean.
    """
    m, n_layers = table.n_atoms, len(table.layers)
    running = np.concatenate([[0.0], np.cumsum(table.value, dtype=np.float64)])
    first, end = table.starts[:-1], table.starts[1:]
    sums = (running[np.minimum(first + top, end)] - running[first]).reshape(m, n_layers)
    rows = np.maximum(table.rows_per_layer, 1)
    score = sums / np.minimum(top, rows)
    firing = (end - first).reshape(m, n_layers) / rows
    alive = score.sum(1) > 0
    peak = np.where(alive, score.argmax(1), -1)
    return Importance(score, firing, peak, _spread(score))


def _spread(score: NDArray[np.float64]) -> NDArray[np.float64]:
    total = score.sum(1, keepdims=True)
    share = score / np.where(total > 0, total, 1.0)
    entropy = -(share * np.log(np.where(share > 0, share, 1.0))).sum(1)
    return np.where(total[:, 0] > 0, np.exp(entropy), 0.0)


class Variety(NamedTuple):
    """How varied the strongest codes of every factor at its peak are.

    Attributes:
        documents: number of distinct documents, `[m]`.
        windows: number of distinct texts around the token (two tokens to each side), `[m]`.
        lead: token of the strongest code, -1 for a factor that never fires, `[m]`.
    """

    documents: Integers
    windows: Integers
    lead: Integers


def variety(table: CodeTable, peak: Integers, top: int) -> Variety:
    """Count documents and windows among the `top` strongest codes of every atom at its peak.

    Args:
        table: the codes of a text.
        peak: layer index per atom, -1 for none, `[m]`.
        top: how many of the strongest codes to look at.
    """
    alive = np.flatnonzero(peak >= 0)
    group = alive * len(table.layers) + peak[alive]
    first = table.starts[group]
    length = np.minimum(top, table.starts[group + 1] - first)
    ends = np.cumsum(length)
    inside = np.arange(int(length.sum())) - np.repeat(ends - length, length)
    rows = table.row[np.repeat(first, length) + inside]
    atom = np.repeat(alive, length)
    _, window = np.unique(table.window_hash(rows), return_inverse=True)
    lead = np.full(table.n_atoms, -1, np.int64)
    lead[alive] = table.token[table.row[first]]
    return Variety(
        _distinct(atom, table.document[rows], table.n_atoms),
        _distinct(atom, window.reshape(-1), table.n_atoms),
        lead,
    )


def _distinct(atom: Integers, label: Integers, n_atoms: int) -> Integers:
    base = int(label.max(initial=0)) + 1
    pairs = np.unique(atom * base + label)
    return np.bincount(pairs // base, minlength=n_atoms).astype(np.int64)


def best_by_peak(seen: Importance, varied: Variety, per_layer: int) -> list[Integers]:
    """Return, for every layer, the atoms that peak there, the most telling ones first.

    The rank is the score at the peak times how concentrated the factor is: in depth (divided by the
    spread over layers) and in the text (times the log of one over its firing share). Behind all the
    others come atoms that fire in fewer than 3 documents or 5 different windows (one repeated
    string), or on more than a fifth of the layer (a shared direction rather than a factor); and
    before them, those whose strongest token already leads a better factor of the layer.

    Args:
        seen: result of `importance`.
        varied: result of `variety`.
        per_layer: how many atoms to return per layer, at most.

    Returns:
        L arrays of atoms.
    """
    atoms = np.arange(len(seen.peak))
    score, firing = seen.score[atoms, seen.peak], seen.firing[atoms, seen.peak]
    rank = score / np.maximum(seen.spread, 1.0) * np.log(1 / np.clip(firing, 1e-9, 1.0))
    odd = (varied.documents < MIN_DOCUMENTS) | (varied.windows < MIN_WINDOWS)
    odd |= firing > MAX_FIRING
    order = np.lexsort((atoms, -rank, odd))
    places: list[Integers] = []
    for layer in range(seen.score.shape[1]):
        here = order[seen.peak[order] == layer]
        _, new = np.unique(varied.lead[here], return_index=True)
        repeated = np.ones(len(here), bool)
        repeated[new] = False
        places.append(here[np.lexsort((repeated, odd[here]))][:per_layer])
    return places
