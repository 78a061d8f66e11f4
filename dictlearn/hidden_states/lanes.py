"""Where the rows of every lane come from: the order of the data as arithmetic, no transformer.

In epoch e a permutation keyed (seed, "blocks", e) deals the token blocks to the lanes like cards.
Lane block b of a lane is its next few token blocks, whose rows are permuted by a generator keyed
(seed, "rows", lane, e, b). So any row of a lane is found from its number: the state is one integer.
"""

from __future__ import annotations

import bisect
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dictlearn.errors import InputError
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
    order: Integers  # [B] token blocks, dealt to the lanes in turn
    ends: tuple[Integers, ...]  # per lane: rows up to the end of every lane block


class LanePlan:
    """Finds the lane block of any row of any lane.

    Args:
        rows: rows that every token block yields (tokens times layers), `[B]`.
        lanes: number of lanes.
        sequences_per_block: token blocks per lane block; the last one of an epoch may have fewer.
        seed: seed of the run.

    Raises:
        InputError: there are fewer token blocks than lanes.
    """

    def __init__(self, rows: Integers, lanes: int, sequences_per_block: int, seed: int) -> None:
        if len(rows) < lanes:
            raise InputError(
                f"hidden_states.lanes={lanes} needs at least {lanes} token blocks of training text"
                f" and there are {len(rows)}: give more text, or set"
                f" hidden_states.lanes={max(len(rows), 1)} or less."
            )
        self.rows, self.lanes, self.seed = rows, lanes, seed
        self.sequences_per_block = sequences_per_block
        self._starts: list[Integers] = [np.zeros(lanes, dtype=np.int64)]  # per epoch: [lanes]
        self._epochs: dict[int, _Epoch] = {}

    def order(self, epoch: int) -> Integers:
        """Return the permutation of the token blocks of an epoch, `[B]`."""
        return self._epoch(epoch).order

    def block(self, lane: int, row: int) -> LaneBlock:
        """Return the lane block that holds row number `row` of a lane."""
        while self._starts[-1][lane] <= row:
            ends_of_lanes = self._epoch(len(self._starts) - 1).ends
            self._starts.append(self._starts[-1] + [ends[-1] for ends in ends_of_lanes])
        epoch = bisect.bisect_right(self._starts, row, key=lambda start: int(start[lane])) - 1
        plan, start = self._epoch(epoch), int(self._starts[epoch][lane])
        ends = plan.ends[lane]
        number = int(np.searchsorted(ends, row - start, side="right"))
        first = start + (int(ends[number - 1]) if number else 0)
        size = self.sequences_per_block
        tokens = plan.order[lane :: self.lanes][number * size : (number + 1) * size]
        return LaneBlock(lane, epoch, number, first, start + int(ends[number]), tokens)

    def permutation(self, block: LaneBlock) -> Tensor:
        """Return the order in which the rows of a lane block are seen, int64 `[n]`."""
        random = generator(self.seed, "rows", block.lane, block.epoch, block.number)
        return torch.randperm(block.last - block.first, generator=random)

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            random = generator(self.seed, "blocks", epoch)
            order = torch.randperm(len(self.rows), generator=random).numpy()
            ends = tuple(self._ends(order[lane :: self.lanes]) for lane in range(self.lanes))
            # lanes are at most one epoch apart unless blocks differ wildly: two are enough
            self._epochs = dict([*self._epochs.items()][-1:])
            self._epochs[epoch] = _Epoch(order, ends)
        return self._epochs[epoch]

    def _ends(self, order: Integers) -> Integers:
        firsts = np.arange(0, len(order), self.sequences_per_block)
        return np.cumsum(np.add.reduceat(self.rows[order], firsts))
