"""The LightningDataModule of stored hidden states: a true global shuffle, and nothing to compute.

In epoch e the rows come in a permutation of all of them that is keyed (seed, e). The batch of a
step is the next part of that order, and a process takes its share of consecutive rows: so the
whole state is one integer, and the batches of all processes together do not depend on how many
there are.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Generator, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from dictlearn.hidden_states.background import Background, Foreground, Pending, Worker
from dictlearn.hidden_states.batch import HiddenStates
from dictlearn.hidden_states.cache.plain import PlainRows
from dictlearn.hidden_states.cache.reader import CacheReader
from dictlearn.hidden_states.module import DataModule, TrainingBatches
from dictlearn.hidden_states.options import CachedOptions, StreamOptions
from dictlearn.hidden_states.order import PER_STEP
from dictlearn.hidden_states.permutation import Integers, Permutation
from dictlearn.hidden_states.statistics import Normalization
from dictlearn.hidden_states.validation import ValidationBatches, choose_blocks

log = logging.getLogger(__name__)

LANES = StreamOptions.lanes
"""Held-out blocks come in multiples of that, as in a live stream with its default."""


class Slice(NamedTuple):
    """What one process takes of every step.

    Attributes:
        rank: its number.
        world: number of processes.
    """

    rank: int
    world: int


def open_source(options: CachedOptions) -> CacheReader | PlainRows:
    """Return the cache or the plain file that the options name.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    return CacheReader(options) if Path(options.path).is_dir() else PlainRows(options)


class CachedDataModule(DataModule):
    """Stored hidden states, shuffled over all of them, in an order fixed by the seed.

    Args:
        options: where they are, and options of the stream.
        max_vectors: training vectors of the whole run, over all processes.
        seed: seed of the run.

    Raises:
        InputError: there are none, or they are damaged.
    """

    options: CachedOptions

    def __init__(
        self, options: CachedOptions, max_vectors: float = 1_000_000, seed: int = 0
    ) -> None:
        super().__init__(options, max_vectors, seed)
        self.source = open_source(options)
        self.transformer, self.text = self.source.transformer, self.source.text
        self.layers, self.hidden_size = self.source.layers, self.source.hidden_size
        self.shows_text = isinstance(self.source, CacheReader)
        self._seconds = 0.0

    def setup(self, stage: str | None = None) -> None:
        """Check that everything is there, and take the statistics of all training vectors."""
        device = self._root_device()
        if self._device == device:
            return
        self.source.open()
        kind = self.options.normalization
        self.statistics = self.source.statistics(kind)
        mean, scale = self.statistics.mean, self.statistics.scale
        self.normalization = Normalization(kind, self.layers, mean, scale)
        if self.source.store is not None:
            self.store = self.source.store
        blocks = self.source.held_out
        n_held_out = int(blocks.n_tokens(np.arange(len(blocks))).sum()) * len(self.layers)
        self._say(
            f"{self.source.path}: {self.source.n_rows} vectors of {self.text.name} to train on,"
            f" {n_held_out} held out; no transformer is needed."
        )
        self._device = device

    def train_dataloader(self) -> TrainingBatches:
        """Return the batches of the whole run for this process."""
        rank, world = self._rank_and_world()
        n_steps, n_rows = self.n_steps(world), self.source.n_rows
        wanted = n_steps * self.options.batch_size * world
        if wanted > n_rows:
            self._say(
                f"There are {n_rows} vectors: max_vectors={self.max_vectors} goes round them"
                f" again, {wanted / n_rows:.1f} times in all."
            )
        return TrainingBatches(self, Slice(rank, world), n_steps)

    def iterate(self, share: Slice, n_steps: int) -> Iterator[HiddenStates]:
        """Yield the batches of this process from the trainer's step (0 without one) on."""
        self._iterators.append(self._batches(share, self._first_step(), n_steps))
        return self._iterators[-1]

    def _batches(self, share: Slice, first: int, last: int) -> Generator[HiddenStates, None, None]:
        ahead = self.options.prefetch
        worker: Worker = Background(torch.device("cpu")) if ahead else Foreground()
        try:
            ordered: Pending[HiddenStates] | None = None
            for step in range(first, last):
                batch = (ordered or worker.submit(partial(self._batch, share, step))).result()
                if step + 1 < last:
                    ordered = worker.submit(partial(self._batch, share, step + 1))
                yield batch
        finally:
            worker.close()

    def _batch(self, share: Slice, step: int) -> HiddenStates:
        began = time.perf_counter()
        size = self.options.batch_size
        place = (step * share.world + share.rank) * size
        batch = self.source.gather(self._rows(np.arange(place, place + size)))
        if self._device is not None and self._device.type == "cuda":
            # Lightning copies without waiting, which only page-locked memory allows.
            batch = HiddenStates(*(column.pin_memory() for column in batch))
        self._seconds += time.perf_counter() - began
        return batch

    def _rows(self, places: Integers) -> Integers:
        """Return the rows at these places of the endless order of all epochs, `[n]`."""
        n_rows = self.source.n_rows
        epochs, within = np.divmod(places, n_rows)
        rows = np.empty_like(places)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1) if len(epochs) else ():
            here = epochs == epoch
            rows[here] = Permutation(n_rows, self.seed, "cached", epoch)(within[here])
        return rows

    def sample(self, n: int) -> HiddenStates:
        """Return `n` training vectors if there are, those with which the first epoch begins."""
        rows = self.source.gather(self._rows(np.arange(min(n, self.source.n_rows))))
        return HiddenStates(*(column.to(self._device) for column in rows))

    def val_dataloader(self) -> ValidationBatches | list[HiddenStates]:
        """Return the held-out batches of this process, in order; an empty list if none."""
        rank, world = self._rank_and_world()
        options, blocks = self.options, self.source.held_out
        rows = blocks.n_tokens(np.arange(len(blocks))) * len(self.layers)
        lanes = math.lcm(LANES, world)
        numbers = choose_blocks(rows, options.validation_vectors, lanes, world, self.seed)
        self.n_validation_vectors = int(rows[numbers].sum())
        if not len(numbers):
            if self.text.validation_fraction and options.validation_vectors and rank == 0:
                log.warning(
                    "%s has nothing sound that is held out: there will be no held-out figures.",
                    self.source.path,
                )
            return []
        return ValidationBatches(blocks, numbers, rank, world, options.batch_size)

    def decode_tokens(self, ids: Iterable[int]) -> list[str]:
        """Return every token as it reads within a sentence."""
        return [self.source.pieces[int(i)] for i in ids]

    def about(self) -> dict[str, Any]:
        """Return transformer and text as they were when the cache was made."""
        return self.source.about()

    def order(self) -> dict[str, object]:
        """Return what the order of the data depends on; the place in it is the trainer's step."""
        return {
            "seed": self.seed,
            **self.source.identity(),
            "training_vectors": self.source.n_rows,
            "hidden_states.layers": list(self.layers),
            PER_STEP: self.options.batch_size * self._rank_and_world()[1],
        }

    @property
    def extraction_seconds(self) -> float:
        """Seconds that this process has spent on reading training vectors."""
        return self._seconds

    @property
    def blocks_run(self) -> int:
        """None: no transformer runs."""
        return 0

    @property
    def non_finite(self) -> frozenset[tuple[str, int, int]]:
        """Return none: a vector that is not finite ends the run."""
        return frozenset()
