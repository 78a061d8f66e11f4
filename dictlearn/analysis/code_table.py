"""The positive codes of a text in one sorted table, from which every question is a slice.

Legend: n rows (hidden states), z positive codes, m atoms, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Floats = NDArray[np.float32]


class Observed(NamedTuple):
    """Codes as they come out of validation, in stream order.

    Attributes:
        layer: index of the hidden state of every row, `[n]`.
        token: token id of every row, `[n]`.
        document: document index of every row, `[n]`.
        position: token index within the document, `[n]`.
        row: row of every positive code, `[z]`.
        atom: atom of every positive code, `[z]`.
        value: the code, `[z]`.
    """

    layer: NDArray[np.integer]
    token: NDArray[np.integer]
    document: NDArray[np.integer]
    position: NDArray[np.integer]
    row: NDArray[np.integer]
    atom: NDArray[np.integer]
    value: NDArray[np.floating]

    @classmethod
    def join(cls, parts: Sequence[Observed]) -> Observed:
        """Return the parts one after the other (batches of a rank, ranks of a group)."""
        if not parts:
            empty = np.zeros(0, np.int32)
            return cls(empty, empty, empty, empty, empty, empty, np.zeros(0, np.float32))
        shifts = np.cumsum([0, *(len(part.layer) for part in parts[:-1])])
        moved = [part.row + shift for part, shift in zip(parts, shifts, strict=True)]
        whole = [np.concatenate(columns) for columns in zip(*parts, strict=True)]
        return cls(*whole)._replace(row=np.concatenate(moved))

    def nbytes(self) -> int:
        """Return the memory of all columns in bytes."""
        return sum(column.nbytes for column in self)


@dataclass(frozen=True)
class CodeTable:
    """Positive codes sorted by (atom, layer, falling value); rows by (layer, document, position).

    The order depends on the content only, not on batches, ranks or the form of the codes; a row
    that came twice (an evenly padded last batch) is kept once.

    Attributes:
        layers: indices of the hidden states, rising, `[L]`.
        n_atoms: `m`.
        layer: index into `layers` of every row, `[n]`.
        token: token id of every row, `[n]`.
        document: document index of every row, `[n]`.
        position: token index within the document, `[n]`.
        key: one rising number per row that says (layer, document, position), `[n]`; the next
            position of the same document has the next number.
        stride: one more than the largest position.
        row: row of every code, `[z]`.
        value: every code, `[z]`.
        starts: the codes of atom c at layers[i] are `starts[c * L + i] : starts[c * L + i + 1]`.
    """

    layers: Integers
    n_atoms: int
    layer: Integers
    token: Integers
    document: Integers
    position: Integers
    key: Integers
    stride: int
    row: Integers
    value: Floats
    starts: Integers

    @property
    def rows_per_layer(self) -> Integers:
        """Number of rows of every layer, `[L]`."""
        return np.bincount(self.layer, minlength=len(self.layers)).astype(np.int64)

    def span(self, atom: int, layer: int) -> slice:
        """Return where the codes of `atom` at `layers[layer]` are, strongest first."""
        group = atom * len(self.layers) + layer
        return slice(int(self.starts[group]), int(self.starts[group + 1]))

    def neighbours(self, rows: Integers, offsets: Integers) -> Integers:
        """Return the rows `offsets` tokens further in the same document and layer.

        Args:
            rows: `[c]`.
            offsets: `[t]`, any whole numbers.

        Returns:
            `[c, t]`, -1 where that token is not in the table.
        """
        place = self.position[rows][:, None] + offsets
        inside = (place >= 0) & (place < self.stride)
        wanted = self.key[rows][:, None] + offsets
        found = np.minimum(np.searchsorted(self.key, wanted), len(self.key) - 1)
        return np.where(inside & (self.key[found] == wanted), found, -1)

    def window_tokens(self, rows: Integers, reach: int) -> Integers:
        """Return the token ids from `reach` before to `reach` after each row, `[c, 2 reach + 1]`.

        -1 stands for a token that is not in the table.
        """
        near = self.neighbours(rows, np.arange(-reach, reach + 1))
        return np.where(near < 0, -1, self.token[near])

    def window_hash(self, rows: Integers, reach: int = 2) -> NDArray[np.uint64]:
        """Return a number per row that is equal for rows with the same tokens around, `[c]`."""
        total = np.zeros(len(rows), np.uint64)
        for column in self.window_tokens(rows, reach).T:
            total = (total ^ (column + 2).astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
            total ^= total >> np.uint64(29)
        return total


def _order(group: Integers, value: Floats, row: Integers) -> Integers:
    # The bits of positive floats rise with their value: one 64-bit number sorts (group, -value).
    falling = np.uint64(0xFFFFFFFF) - value.view(np.uint32).astype(np.uint64)
    key = (group.astype(np.uint64) << np.uint64(32)) | falling
    signed = torch.from_numpy(key.view(np.int64))  # torch sorts whole numbers three times as fast
    order: Integers = torch.sort(signed, stable=True).indices.numpy()
    # Few codes are equal; only those are sorted by row as well.
    tied = np.flatnonzero(key[order[1:]] == key[order[:-1]])
    places = np.union1d(tied, tied + 1)
    equal = order[places]
    order[places] = equal[np.lexsort((row[equal], key[equal]))]
    return order


def code_table(seen: Observed, n_atoms: int, layers: Sequence[int]) -> CodeTable:
    """Sort the codes of a text into a table.

    Args:
        seen: the codes in any order of rows; all values positive and finite.
        n_atoms: `m`, rows of the dictionary.
        layers: indices of the hidden states; the layers found in `seen` are added.

    Returns:
        The table; rows at a negative position (special tokens) are left out.
    """
    names = np.union1d(np.asarray(layers, np.int64), seen.layer.astype(np.int64))
    layer = np.searchsorted(names, seen.layer)
    documents = int(seen.document.max(initial=0)) + 1
    stride = int(seen.position.max(initial=0)) + 1
    raw = (layer * documents + seen.document) * stride + seen.position
    raw[seen.position < 0] = -1
    key, first, place = np.unique(raw, return_index=True, return_inverse=True)
    skip = int(len(key) > 0 and key[0] < 0)
    key, first, place = key[skip:], first[skip:], place.reshape(-1) - skip

    is_first = np.zeros(len(raw), bool)
    is_first[first] = True
    kept = is_first[seen.row]
    row, value = place[seen.row[kept]], seen.value[kept].astype(np.float32)
    group = seen.atom[kept].astype(np.int64) * len(names) + layer[seen.row[kept]]
    order = _order(group, value, row)
    counts = np.bincount(group, minlength=n_atoms * len(names))
    return CodeTable(
        layers=names,
        n_atoms=n_atoms,
        layer=layer[first],
        token=seen.token[first].astype(np.int64),
        document=seen.document[first].astype(np.int64),
        position=seen.position[first].astype(np.int64),
        key=key,
        stride=stride,
        row=row[order],
        value=value[order],
        starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
    )
