"""The stream of mixed batches: every step takes the next rows of every lane."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from typing import NamedTuple

import torch
from torch import Tensor

from dictlearn.errors import InputError
from dictlearn.hidden_states.background import Background, Foreground, Pending, Worker
from dictlearn.hidden_states.batch import HiddenStates, TokenStates
from dictlearn.hidden_states.extraction import Extractor
from dictlearn.hidden_states.lanes import LaneBlock, LanePlan
from dictlearn.mesh import Processes


class Share(NamedTuple):
    """What one process takes of every step.

    Attributes:
        lanes: the lanes that it serves.
        rows: consecutive rows of each of them per step.
    """

    lanes: range
    rows: int

    @classmethod
    def of(cls, rank: int, world: int, lanes: int, batch_size: int) -> Share:
        """Return the share of process `rank` of `world`; `batch_size` is per process.

        Lanes that follow each other: the batches of the processes, one after the other, are the
        batch of one process row by row.

        Raises:
            InputError: lanes or rows cannot be shared out evenly.
        """
        if lanes % world:
            raise InputError(
                f"{world} processes cannot share hidden_states.lanes={lanes} evenly: set"
                f" hidden_states.lanes to a multiple of {world}."
            )
        per_process = lanes // world
        rows, rest = divmod(batch_size, per_process)
        if rest:
            fitting = max(batch_size // per_process, 1) * per_process
            raise InputError(
                f"hidden_states.batch_size={batch_size} must be a multiple of the {per_process}"
                f" lanes of a process (hidden_states.lanes={lanes}, processes={world}):"
                f" set hidden_states.batch_size={fitting}."
            )
        return cls(range(rank * per_process, (rank + 1) * per_process), rows)

    def split(self, others: Processes) -> Share:
        """Return what this process makes of it, where others take the same rows.

        If the lanes cannot be split evenly, everything.
        """
        if len(self.lanes) % others.count:
            return self
        return self._replace(lanes=self.lanes[others.rank :: others.count])


def joined(
    batches: Generator[HiddenStates, None, None], made: Share, others: Processes
) -> Generator[HiddenStates, None, None]:
    """Yield the rows of all processes that split a share, in the order of its lanes.

    Args:
        batches: of the lanes of this process.
        made: those lanes, and rows of each.
        others: the processes that split the share.
    """
    with closing(batches):
        for batch in batches:
            columns = []
            for column in batch:
                shape = (others.count, len(made.lanes), made.rows, *column.shape[1:])
                parts = others.joined(column).view(shape)
                columns.append(parts.transpose(0, 1).flatten(0, 2))
            yield HiddenStates(*columns)


class ShuffledBlock(NamedTuple):
    """Hidden states of one lane block and the order in which its rows are seen."""

    states: TokenStates
    order: Tensor

    def used_by_current_stream(self) -> None:
        """Tell CUDA's allocator that the consumer's stream reads what another stream made."""
        if self.order.is_cuda:
            for tensor in (*self.states, self.order):
                tensor.record_stream(torch.cuda.current_stream(tensor.device))


class _Lane:
    """Reads one lane: the lane block in use, and the next one under way."""

    def __init__(self, stream: LaneStream, lane: int, worker: Worker) -> None:
        self._stream, self._worker = stream, worker
        self._row = stream.first_step * stream.share.rows
        self._end = stream.last_step * stream.share.rows
        self._block: ShuffledBlock | None = None
        self._place = stream.plan.block(lane, self._row)
        self._next = self._order(self._place)

    def _order(self, place: LaneBlock) -> Pending[ShuffledBlock]:
        return self._worker.submit(lambda: self._stream.make(place))

    def take(self, n: int) -> Iterator[HiddenStates]:
        """Yield the next `n` rows, in one part per lane block."""
        while n:
            if self._block is None or self._row == self._place.last:
                self._block = None  # freed before another one is ordered
                self._block = self._turn_page()
            offset = self._row - self._place.first
            rows = self._block.order[offset : offset + n]
            yield self._block.states.select(rows)
            n -= len(rows)
            self._row += len(rows)

    def _turn_page(self) -> ShuffledBlock:
        """Return the block of the next row and order the one after it, if the run gets there."""
        block = self._next.result()
        block.used_by_current_stream()
        lane, plan = self._place.lane, self._stream.plan
        self._place = plan.block(lane, self._row)
        if self._place.last < self._end:
            self._next = self._order(plan.block(lane, self._place.last))
        return block


class LaneStream:
    """Batches of steps `first_step` to `last_step` (exclusive) of one process.

    The order is a pure function of (seed, step): starting at a step gives what a run from 0 would
    give there, and recomputes at most one lane block per lane.

    Args:
        plan: where the rows of the lanes come from.
        extractor: makes the hidden states of token blocks.
        share: lanes and rows per lane of this process.
        first_step: step to start at.
        last_step: step before which to stop.
        prefetch: whether a background thread makes the next lane block meanwhile.
    """

    def __init__(
        self,
        plan: LanePlan,
        extractor: Extractor,
        share: Share,
        first_step: int,
        last_step: int,
        prefetch: bool = False,
    ) -> None:
        self.plan, self.extractor, self.share = plan, extractor, share
        self.first_step, self.last_step, self.prefetch = first_step, last_step, prefetch

    def __iter__(self) -> Generator[HiddenStates, None, None]:
        device = self.extractor.device
        worker: Worker = Background(device) if self.prefetch else Foreground()
        try:
            yield from self._batches(worker)
        finally:
            worker.close()

    def _batches(self, worker: Worker) -> Iterator[HiddenStates]:
        if self.first_step >= self.last_step:
            return
        lanes = [_Lane(self, lane, worker) for lane in self.share.lanes]
        for _ in range(self.first_step, self.last_step):
            parts = [part for lane in lanes for part in lane.take(self.share.rows)]
            yield HiddenStates.concatenate(parts)

    def make(self, place: LaneBlock) -> ShuffledBlock:
        """Compute a lane block."""
        order = self.plan.permutation(place).to(self.extractor.device)
        return ShuffledBlock(self.extractor.extract(place.tokens), order)


def lane_block_bytes(extractor: Extractor, sequences: int) -> int:
    """Return the largest size of a lane block of so many sequences, in bytes."""
    frame, n_layers = extractor.frame, len(extractor.layers)
    tokens = sequences * (frame.block_length + frame.special * frame.keep)
    vector = extractor.transformer.hidden_size * extractor.item_size
    # per row its vector and its place in the order; per token its id, document, position, weight
    return tokens * (n_layers * (vector + 8) + 3 * 8 + 4) + n_layers * 8
