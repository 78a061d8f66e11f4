"""Which documents a lane reads: every lane has documents of its own, of about as many rows.

Whole documents, the longest first, each to the lane that has least so far (Graham 1969, Bounds on
multiprocessing timing anomalies: the longest-processing-time rule). Where documents are so few or
so long that the lanes would differ by more than `UNEVEN`, the longest are cut until they do not:
otherwise their tokens would be seen less often than others.

Legend: B token blocks, U units (documents or pieces of them) that are dealt whole.
"""

from __future__ import annotations

import heapq

import numpy as np
import torch
from numpy.typing import NDArray

from dictlearn.seeding import generator

Integers = NDArray[np.int64]

UNEVEN = 0.05
"""Largest difference between two lanes, as a share of their mean."""


def dealt(rows: Integers, documents: Integers, lanes: int, seed: int) -> Integers:
    """Return the lane of every token block, int64 `[B]`; every lane has one.

    Args:
        rows: rows that every token block yields, `[B]`.
        documents: numbers of the documents that the blocks are of, in ascending order, `[B]`.
        lanes: number of lanes, at most B.
        seed: of the order among documents of the same length.
    """
    longest = int(rows.sum())
    while True:
        unit = _units(rows, documents, longest)
        sizes = np.bincount(unit, weights=rows).astype(np.int64)
        lane = _dealt(sizes, lanes, seed)[unit]
        loads = np.bincount(lane, weights=rows, minlength=lanes)
        if np.ptp(loads) <= UNEVEN * loads.mean() or len(sizes) == len(rows):
            return lane
        longest = min(longest, int(sizes.max())) // 2


def _units(rows: Integers, documents: Integers, longest: int) -> Integers:
    """Number documents, and the pieces of those that have more than `longest` rows, `[B]`."""
    new = np.concatenate([[True], documents[1:] != documents[:-1]])
    document = np.cumsum(new) - 1
    before = np.cumsum(rows) - rows
    size = np.bincount(document, weights=rows)[document]
    n_pieces = np.ceil(size / max(longest, 1))
    piece = ((before - before[new][document]) * n_pieces // size).astype(np.int64)
    new[1:] |= piece[1:] != piece[:-1]
    return np.cumsum(new) - 1


def _dealt(sizes: Integers, lanes: int, seed: int) -> Integers:
    """Return the lane of every unit, `[U]`."""
    order = torch.randperm(len(sizes), generator=generator(seed, "documents")).numpy()
    order = order[np.argsort(-sizes[order], kind="stable")]
    lane = np.empty(len(sizes), dtype=np.int64)
    heap = [(0, number) for number in range(lanes)]
    for unit, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        load, least = heap[0]
        lane[unit] = least
        heapq.heapreplace(heap, (load + size, least))
    return lane
