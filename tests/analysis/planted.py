"""A small random text with random codes, and the slow way to ask questions about it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dictlearn.analysis.code_table import CodeTable, Observed, code_table


class Planted(NamedTuple):
    """Codes as a dense array beside the same codes as a table (layers 0, 2, 5)."""

    seen: Observed
    dense: NDArray[np.float32]
    table: CodeTable

    def rows(self, layer: int) -> NDArray[np.int64]:
        return np.flatnonzero(self.seen.layer == layer)


LAYERS = (0, 2, 5)
N_ATOMS = 11
SILENT = 7


def observed(
    layer: ArrayLike,
    document: ArrayLike,
    position: ArrayLike,
    token: ArrayLike,
    dense: NDArray[np.float32],
) -> Observed:
    """Return dense codes `[n, m]` the way a validation hands them over."""
    row, atom = np.nonzero(dense > 0)
    return Observed(
        layer=np.asarray(layer),
        token=np.asarray(token),
        document=np.asarray(document),
        position=np.asarray(position),
        row=row.astype(np.int32),
        atom=atom.astype(np.int32),
        value=dense[row, atom],
    )


def planted(seed: int = 0, documents: int = 6, length: int = 15) -> Planted:
    """Return three layers of `documents` documents in random row order."""
    random = np.random.default_rng(seed)
    places = [(layer, d, p) for layer in LAYERS for d in range(documents) for p in range(length)]
    layer, document, position = np.array(places)[random.permutation(len(places))].T
    text = random.integers(0, 9, (documents, length))
    dense = random.gamma(1.0, size=(len(places), N_ATOMS)).astype(np.float32)
    dense[random.random(dense.shape) < 0.6] = 0
    dense[:, SILENT] = 0
    seen = observed(layer, document, position, text[document, position], dense)
    return Planted(seen, dense, code_table(seen, N_ATOMS, LAYERS))
