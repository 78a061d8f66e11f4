"""Blocks of token ids through the frozen transformer, in one fixed input shape.

The shape is fixed because the same sentence alone and in a larger batch differs in the last bits:
with it, rows do not depend on which process computes them.

Legend: L tapped layers, b sequences, w width of a sequence with special tokens, t tokens, d width.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dictlearn.errors import InputError
from dictlearn.hidden_states.batch import HiddenStates, TokenStates
from dictlearn.hidden_states.soundness import Soundness, lengths, longest

if TYPE_CHECKING:
    from dictlearn.hidden_states.options import StreamOptions
    from dictlearn.text import Blocks, TokenStore
    from dictlearn.transformer import FrozenTransformer

Integers = NDArray[np.int64]
SEQUENCES_PER_FORWARD = 32


class Frame(NamedTuple):
    """The fixed shape of the transformer's input and the special tokens around a block.

    Attributes:
        block_length: largest number of text tokens in a sequence.
        before: ids put before every block.
        after: ids put after every block.
        keep: whether these special tokens become vectors.
        sequences: sequences per forward pass.
    """

    block_length: int
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    keep: bool = False
    sequences: int = SEQUENCES_PER_FORWARD

    @classmethod
    def of(cls, transformer: FrozenTransformer, options: StreamOptions) -> Frame:
        """Return the frame that `options` ask for, checked against the transformer.

        Raises:
            InputError: the sequences are longer than the transformer takes.
        """
        none: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
        affixes = transformer.special_affixes if options.special_tokens == "model" else none
        frame = cls(
            options.block_length,
            *affixes,
            keep=options.keep_special,
            sequences=min(SEQUENCES_PER_FORWARD, options.sequences_per_block),
        )
        frame.check(transformer)
        return frame

    @property
    def special(self) -> int:
        """Number of special tokens around a block."""
        return len(self.before) + len(self.after)

    @property
    def width(self) -> int:
        """Tokens per sequence, special tokens included."""
        return self.block_length + self.special

    def vectors_per_block(self, length: Integers) -> Integers:
        """Return how many tokens of blocks of these lengths become vectors (in one layer)."""
        return length + self.special * self.keep

    def check(self, transformer: FrozenTransformer) -> None:
        """Check that a sequence fits the transformer.

        Raises:
            InputError: it does not.
        """
        limit = transformer.max_positions
        if limit is not None and self.width > limit:
            raise InputError(
                f"hidden_states.block_length={self.block_length} and {self.special} special tokens"
                f" are longer than the {limit} positions of {transformer.name}: set"
                f" hidden_states.block_length={limit - self.special} or less."
            )


class _Layout(NamedTuple):
    """Sequences of blocks, `[b, w]` each: ids, which are real, which become vectors, and whence."""

    ids: Integers
    real: NDArray[np.bool_]
    kept: NDArray[np.bool_]
    source: Integers  # token index in the store; of a special token: the block's nearest token
    special: NDArray[np.bool_]


class Extractor:
    """Makes hidden states of token blocks; the rows of a block are a pure function of its number.

    Args:
        transformer: the frozen transformer, loaded on `device` (or to be loaded on first use).
        store: tokens of the text.
        blocks: the token blocks that can be asked for (of training or of held-out documents).
        layers: tapped indices of `hidden_states`.
        frame: input shape and special tokens.
        weights: weight of every token id, float32 `[V]`; None = all 1.
        device: where the hidden states live.
        most_non_finite: tokens whose hidden states may be not finite.

    Attributes:
        seconds: spent on making hidden states so far.
        soundness: which tokens are left out.

    Raises:
        InputError: the sequences are longer than the transformer takes.
    """

    def __init__(
        self,
        transformer: FrozenTransformer,
        store: TokenStore,
        blocks: Blocks,
        layers: tuple[int, ...],
        frame: Frame,
        weights: Tensor | None = None,
        device: torch.device | str = "cpu",
        most_non_finite: int = 0,
    ) -> None:
        frame.check(transformer)
        self.soundness = Soundness(transformer.name, layers, store.document_ids, most_non_finite)
        self.seconds = 0.0
        self.transformer, self.store, self.blocks = transformer, store, blocks
        self.layers, self.frame, self.device = layers, frame, torch.device(device)
        ones = torch.ones(transformer.vocabulary_size)
        self.item_size = 4  # bytes per number of a vector; known for sure after the first one
        self._weights = (ones if weights is None else weights).to(self.device)

    def rows(self, numbers: Integers) -> HiddenStates:
        """Return the hidden states of the blocks `numbers: [b]`, in canonical order.

        Layer by layer; within a layer block by block as asked, within a block token by token.
        """
        return self.extract(numbers).rows()

    def __len__(self) -> int:
        return len(self.blocks.start)

    def n_tokens(self, numbers: Integers) -> Integers:
        """Return how many tokens of each of these blocks become vectors, `[b]`."""
        return self.frame.vectors_per_block(self.blocks.length[numbers])

    def extract(self, numbers: Integers) -> TokenStates:
        """Return the hidden states of the blocks `numbers: [b]`, padding left out.

        Tokens with a hidden state that is not finite or far too long have no weight, and their
        places are taken by neighbours (see `Soundness`).

        Raises:
            InputError: too many are not finite, or a token id is beyond the vocabulary.
        """
        began = time.perf_counter()
        layout = self._layout(numbers)
        special = layout.special[layout.kept]
        document, position = self.store.locate(layout.source[layout.kept])
        position = np.where(special, -1, position)
        token = self._tensor(layout.ids[layout.kept])
        vectors, sound = self._forward(layout, document, position)
        layers = torch.tensor(self.layers, device=self.device)
        places = (self._tensor(document), self._tensor(position))
        self.seconds += time.perf_counter() - began
        return TokenStates(vectors, layers, token, *places, self._weights[token] * sound)

    def limit(self, ratio: float) -> Tensor:
        """Return how long a hidden state may be, `[L]`: so many times the median of its layer.

        The median is that of one forward pass of blocks from everywhere in the text.
        """
        last = len(self) - 1
        numbers = np.unique(np.linspace(0, last, self.frame.sequences).astype(np.int64))
        return longest(lengths(self.extract(numbers).vectors), ratio)

    def _layout(self, numbers: Integers) -> _Layout:
        """Place the blocks `numbers: [b]` into rows of equal width."""
        before, after = len(self.frame.before), len(self.frame.after)
        start, length = self.blocks.start[numbers, None], self.blocks.length[numbers, None]
        column = np.arange(self.frame.width)[None]
        offset = column - before
        in_text = (offset >= 0) & (offset < length)
        real = column < before + length + after
        source = start + np.clip(offset, 0, length - 1)
        ids = np.where(in_text, self.store.tokens[source], self.transformer.pad_id).astype(np.int64)
        ids[:, :before] = self.frame.before
        for i, suffix in enumerate(self.frame.after):
            np.put_along_axis(ids, before + length + i, suffix, axis=1)
        kept = real if self.frame.keep else in_text
        return _Layout(ids, real, kept, source, real & ~in_text)

    def _forward(
        self, layout: _Layout, document: Integers, position: Integers
    ) -> tuple[Tensor, Tensor]:
        """Run the transformer over the layout, `frame.sequences` at a time.

        Returns:
            The hidden states `[L, t, d]`, and which tokens are not left out, `[t]`.
        """
        n, size = len(layout.ids), self.frame.sequences
        vectors = torch.empty(0)
        sound = torch.ones(len(document), dtype=torch.bool, device=self.device)
        done = 0
        for first in range(0, n, size):
            kept = layout.kept[first : first + size]
            rows = self._chunk(layout, first).index_select(1, self._tensor(np.flatnonzero(kept)))
            if first == 0:
                vectors = rows.new_empty(len(rows), len(document), rows.shape[-1])
                self.item_size = vectors.element_size()
            last = done + rows.shape[1]
            here = slice(done, last)
            sifted = self.soundness.sift(rows, document[here], position[here])
            vectors[:, here], sound[here] = sifted
            done = last
        return vectors, sound

    def _chunk(self, layout: _Layout, first: int) -> Tensor:
        """Return the hidden states of one forward pass of fixed shape, `[L, b * w, d]`."""
        size, width = self.frame.sequences, self.frame.width
        ids = np.full((size, width), self.transformer.pad_id, dtype=np.int64)
        mask = np.ones((size, width), dtype=np.int64)  # sequences that only fill the shape
        part = layout.ids[first : first + size]
        ids[: len(part)], mask[: len(part)] = part, layout.real[first : first + size]
        hidden = self.transformer.hidden_states(
            torch.from_numpy(ids), torch.from_numpy(mask), self.layers
        )
        return hidden.to(self.device).flatten(1, 2)

    def _tensor(self, values: NDArray[np.integer]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)
