"""Where the rows of every lane come from: the order of the data as arithmetic, no transformer.

Every lane has documents of its own (`dealt`), whose token blocks it goes through in its epoch e in
an order keyed (seed, "blocks", lane, e). Lane block b of a lane is its next few token blocks, whose
rows are permuted by a generator keyed (seed, "rows", lane, e, b). So any row of a lane is found
from its number: the state is one integer.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dictlearn.errors import InputError
from dictlearn.hidden_states.dealing import dealt
from dictlearn.seeding import generator

Integers = NDArray[np.int64]


class LaneBlock(NamedTuple):
    """A lane block: what is computed and shuffled together.

    Attributes:
        lane: number of the lane.
        epoch: how often the lane has been through the text before.
        number: number of the block within the lane and epoch.
        first: number of its first row, counted over the whole life of the lane.
        last: number of the row after its last one.
        tokens: numbers of its token blocks.
    """

    lane: int
    epoch: int
    number: int
    first: int
    last: int
    tokens: Integers


class _Epoch(NamedTuple):
    number: int
    order: Integers  # token blocks of a lane
    ends: Integers  # rows up to the end of every lane block


class LanePlan:
    """Finds the lane block of any row of any lane.

    Args:
        rows: rows that every token block yields (tokens times layers), `[B]`.
        documents: numbers of the documents that the token blocks are of, ascending, `[B]`.
        lanes: number of lanes.
        sequences_per_block: token blocks per lane block; the last one of an epoch may have fewer.
        seed: seed of the run.

    Attributes:
        lane: the lane of every token block, `[B]`.

    Raises:
        InputError: there are fewer token blocks than lanes.
    """

    def __init__(
        self,
        rows: Integers,
        documents: Integers,
        lanes: int,
        sequences_per_block: int,
        seed: int,
    ) -> None:
        if len(rows) < lanes:
            raise InputError(
                f"hidden_states.lanes={lanes} needs at least {lanes} token blocks of training text"
                f" and there are {len(rows)}: give more text, or set"
                f" hidden_states.lanes={max(len(rows), 1)} or less."
            )
        self.rows, self.documents, self.lanes, self.seed = rows, documents, lanes, seed
        self.sequences_per_block = sequences_per_block
        self.lane = dealt(rows, documents, lanes, seed)
        self._of_lane = np.split(
            np.argsort(self.lane, kind="stable"), np.cumsum(np.bincount(self.lane))[:-1]
        )
        self._epoch_rows = np.bincount(self.lane, weights=rows)
        self._epochs: dict[int, _Epoch] = {}

    def mixed(self) -> Integers:
        """Return all token blocks in random order, `[B]`."""
        random = generator(self.seed, "mixed")
        return torch.randperm(len(self.rows), generator=random).numpy()

    def n_cut(self) -> int:
        """Return how many documents are in several lanes: they are too long for one."""
        ends = np.flatnonzero(self.documents[1:] != self.documents[:-1])
        starts = np.concatenate([[0], ends + 1])
        first = np.minimum.reduceat(self.lane, starts)
        return int((first != np.maximum.reduceat(self.lane, starts)).sum())

    def epoch_rows(self, lane: int) -> int:
        """Return how many rows a lane has before it begins anew."""
        return int(self._epoch_rows[lane])

    def block(self, lane: int, row: int) -> LaneBlock:
        """Return the lane block that holds row number `row` of a lane."""
        epoch, offset = divmod(row, self.epoch_rows(lane))
        plan, size = self._epoch(lane, epoch), self.sequences_per_block
        number = int(np.searchsorted(plan.ends, offset, side="right"))
        start = row - offset
        first = start + (int(plan.ends[number - 1]) if number else 0)
        tokens = plan.order[number * size : (number + 1) * size]
        return LaneBlock(lane, epoch, number, first, start + int(plan.ends[number]), tokens)

    def permutation(self, block: LaneBlock) -> Tensor:
        """Return the order in which the rows of a lane block are seen, int64 `[n]`."""
        random = generator(self.seed, "rows", block.lane, block.epoch, block.number)
        return torch.randperm(block.last - block.first, generator=random)

    def _epoch(self, lane: int, number: int) -> _Epoch:
        """Return an epoch of a lane; the newest one that was asked for is kept."""
        known = self._epochs.get(lane)
        if known is None or known.number != number:
            mine = self._of_lane[lane]
            random = generator(self.seed, "blocks", lane, number)
            order = mine[torch.randperm(len(mine), generator=random).numpy()]
            firsts = np.arange(0, len(order), self.sequences_per_block)
            ends = np.cumsum(np.add.reduceat(self.rows[order], firsts))
            known = self._epochs[lane] = _Epoch(number, order, ends)
        return known
