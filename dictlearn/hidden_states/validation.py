"""Held-out batches: whole token blocks, in order, the same on any number of processes."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch

from dictlearn.errors import InputError
from dictlearn.hidden_states.batch import HiddenStates, TokenStates
from dictlearn.hidden_states.extraction import Frame, Integers
from dictlearn.seeding import generator


class BlockStates(Protocol):
    """Hidden states of token blocks, found by number: made by a transformer, or stored."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Tapped indices of `hidden_states`."""
        ...

    @property
    def frame(self) -> Frame:
        """How many blocks are best asked for at once."""
        ...

    def __len__(self) -> int:
        """Return the number of blocks."""
        ...

    def n_tokens(self, numbers: Integers) -> Integers:
        """Return how many tokens of each of these blocks are vectors, `[b]`."""
        ...

    def extract(self, numbers: Integers) -> TokenStates:
        """Return the hidden states of the blocks `numbers: [b]`, one block after the other."""
        ...


def choose_blocks(rows: Integers, at_most: int, lanes: int, world: int, seed: int) -> Integers:
    """Choose token blocks at random, so that they spread over the documents; return them in order.

    Their number is a multiple of the lanes (of the processes, where there are fewer blocks than
    lanes), so that every process gets as many and the choice does not depend on how many there are.

    Args:
        rows: rows that every held-out token block yields, `[B]`.
        at_most: largest number of rows in all.
        lanes: lanes of the stream, a multiple of `world`.
        world: number of processes.
        seed: seed of the run.

    Raises:
        InputError: there is not one block for every process.
    """
    if not len(rows) or not at_most:
        return np.empty(0, dtype=np.int64)
    order = torch.randperm(len(rows), generator=generator(seed, "validation")).numpy()
    n = int(np.searchsorted(np.cumsum(rows[order]), at_most, side="right"))
    n -= n % (lanes if n >= lanes else world)
    if not n:
        raise InputError(
            f"hidden_states.validation_vectors={at_most} of the {len(rows)} blocks that are held"
            f" out is less than one block (of up to {rows.max()} vectors) for each of {world}"
            " processes: raise it, hold out more, or set hidden_states.validation_vectors=0 for no"
            " validation."
        )
    return np.sort(order[:n])


def spread_sample(states: HiddenStates, one_in: int) -> torch.Tensor:
    """Return about one in so many rows as a mask `[n]`, spread over tokens and layers.

    Whether a row is chosen depends on where it comes from only.
    """
    return (states.document + states.position + states.layer) % one_in == 0


class ValidationBatches:
    """Unshuffled batches of whole token blocks, about `batch_size` rows each.

    Args:
        extractor: makes the hidden states of held-out token blocks.
        numbers: the chosen blocks of all processes.
        rank: number of this process, which takes every `world`-th block.
        world: number of processes.
        batch_size: rows that a batch should have.
    """

    def __init__(
        self, extractor: BlockStates, numbers: Integers, rank: int, world: int, batch_size: int
    ) -> None:
        self.extractor, self.numbers = extractor, numbers[rank::world]
        rows = int(extractor.n_tokens(numbers).sum()) * len(extractor.layers)
        self.blocks_per_batch = max(1, round(batch_size * len(numbers) / max(rows, 1)))

    def some(self, n: int, random: torch.Generator) -> ValidationBatches:
        """Return batches of some of these blocks, drawn from all of them: of at least `n` rows."""
        rows = self.extractor.n_tokens(self.numbers) * len(self.extractor.layers)
        order = torch.randperm(len(rows), generator=random).numpy()
        enough = int(np.searchsorted(np.cumsum(rows[order]), n)) + 1
        made = copy.copy(self)
        made.numbers = self.numbers[np.sort(order[:enough])]
        return made

    def __len__(self) -> int:
        return math.ceil(len(self.numbers) / self.blocks_per_batch)

    def __iter__(self) -> Iterator[HiddenStates]:
        size = self.blocks_per_batch
        # whole forward passes: their shape is fixed, so a part of one costs as much as all of it
        at_once = max(1, self.extractor.frame.sequences // size) * size
        for first in range(0, len(self.numbers), at_once):
            numbers = self.numbers[first : first + at_once]
            states = self.extractor.extract(numbers)
            ends = np.cumsum(self.extractor.n_tokens(numbers))
            start = 0
            for end in ends[np.minimum(np.arange(size, len(ends) + size, size), len(ends)) - 1]:
                yield states.slice_tokens(start, int(end)).rows()
                start = int(end)
