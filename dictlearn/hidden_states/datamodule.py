"""The LightningDataModule: text in, batches of mixed hidden states out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from dictlearn import processes
from dictlearn.hidden_states import reading
from dictlearn.hidden_states.batch import HiddenStates
from dictlearn.hidden_states.extraction import Extractor, Frame, Integers
from dictlearn.hidden_states.lanes import LanePlan
from dictlearn.hidden_states.module import DataModule, TrainingBatches
from dictlearn.hidden_states.options import StreamOptions
from dictlearn.hidden_states.order import PER_STEP
from dictlearn.hidden_states.soundness import Soundness
from dictlearn.hidden_states.statistics import Normalization, measure
from dictlearn.hidden_states.stream import LaneStream, Share, joined, lane_block_bytes
from dictlearn.hidden_states.validation import ValidationBatches, choose_blocks
from dictlearn.hidden_states.weights import token_weights
from dictlearn.text import Blocks, TokenStore, pack, tokenize

if TYPE_CHECKING:
    from dictlearn.text import TextSource
    from dictlearn.transformer import FrozenTransformer


ORDER = ("block_length", "special_tokens", "cross_documents", "lanes", "sequences_per_block")


class HiddenStateDataModule(DataModule):
    """Hidden states of a text, mixed over documents and layers, in an order fixed by the seed.

    Args:
        transformer: the frozen transformer.
        text: where the documents come from.
        options: options of the stream.
        max_vectors: training vectors of the whole run, over all processes.
        seed: seed of the run.
        data_dir: folder for the tokenised text.

    Attributes:
        layers: tapped indices of `hidden_states`.
        hidden_size: width of a vector.
        store: the tokenised text (after `setup`, like all that follow).
        token_counts: how often every token id becomes a training vector of a layer, `[V]`.
        n_train_tokens: tokens of text to train on.
        n_validation_tokens: held-out tokens of text.
        statistics: means, norms and scales of the layers.
        normalization: the normalisation made from them.

    Raises:
        InputError: an argument is not allowed; later, the text and the options do not fit.
    """

    transformer: FrozenTransformer
    text: TextSource
    options: StreamOptions
    n_train_tokens: int
    n_validation_tokens: int

    def __init__(
        self,
        transformer: FrozenTransformer,
        text: TextSource,
        options: StreamOptions | None = None,
        max_vectors: float = 1_000_000,
        seed: int = 0,
        data_dir: str | Path = "data",
    ) -> None:
        super().__init__(StreamOptions() if options is None else options, max_vectors, seed)
        self.transformer, self.text, self.data_dir = transformer, text, Path(data_dir)
        self.layers = transformer.resolve_layers(self.options.layers)
        self.hidden_size = transformer.hidden_size

    def prepare_data(self) -> None:
        """Tokenise the text; Lightning calls this in one process, before the others' `setup`."""
        Frame.of(self.transformer, self.options)
        self._tokenize()

    def _tokenize(self) -> TokenStore:
        return tokenize(self.text, self.transformer.tokenizer, self.data_dir / "tokens")

    def setup(self, stage: str | None = None) -> None:
        """Split the text, load the transformer on this process's device, measure the statistics."""
        device = self._root_device()
        if self._device == device:
            return
        self.open_text(device)
        options, kind = self.options, self.options.normalization
        rows, documents = self._rows(self._train), self._train.blocks.document
        sequences = options.sequences_per_block
        self._plan = LanePlan(rows, documents, options.lanes, sequences, self.seed)
        self.statistics = measure(self._train, self._plan.mixed(), options.statistics_tokens, kind)
        mean, scale = self.statistics.mean, self.statistics.scale
        self.normalization = Normalization(kind, self.layers, mean, scale)
        self._device = device

    def open_text(self, device: torch.device) -> tuple[Extractor, Extractor]:
        """Split the text and load the transformer on a device.

        Returns:
            What makes the hidden states of all training blocks, and of all held-out blocks.
        """
        frame = Frame.of(self.transformer, self.options)
        self.store = self._tokenize()
        self.transformer.load(device)
        self._split(frame, device)
        return self._train, self._validation

    def _split(self, frame: Frame, device: torch.device) -> None:
        """Cut training and held-out documents into token blocks, apart from each other."""
        options, store = self.options, self.store
        held_out = store.held_out(self.text.validation_fraction)
        train = self._pack(~held_out, shortest=options.block_length)
        validation = self._pack(held_out, shortest=1)
        self.n_train_tokens = int(train.length.sum())
        self.n_validation_tokens = int(validation.length.sum())
        self._say(
            f"{self.text.name}: {self.n_train_tokens} tokens of {(~held_out).sum()} documents to"
            f" train on, {self.n_validation_tokens} tokens of {held_out.sum()} documents held out."
        )
        counts = store.counts(~held_out, self.transformer.vocabulary_size)
        for token in (*frame.before, *frame.after) if frame.keep else ():
            counts[token] += len(train.start)  # a kept special token is there once per block
        self.token_counts = counts
        weights = token_weights(counts, options.token_weight_exponent, options.normalize_weights)
        common = (self.layers, frame, weights, device, options.max_non_finite)
        self._train, self._validation = (
            Extractor(self.transformer, store, blocks, *common) for blocks in (train, validation)
        )
        if options.max_norm is not None and len(self._train):
            limit = self._train.limit(options.max_norm)
            self._train.soundness.longest = self._validation.soundness.longest = limit

    def _pack(self, documents: NDArray[np.bool_], shortest: int) -> Blocks:
        """Cut the chosen documents into token blocks, of `shortest` tokens where there is no more.

        Raises:
            InputError: there are tokens, but fewer than `shortest`.
        """
        n_tokens = int((np.diff(self.store.offsets) * documents).sum())
        if not n_tokens:
            return Blocks.none()
        length = min(self.options.block_length, max(n_tokens, shortest))
        return pack(self.store, documents, length, self.options.cross_documents)

    def train_dataloader(self) -> TrainingBatches:
        """Return the batches of the whole run for this process.

        Raises:
            InputError: lanes or batch size cannot be shared out over the processes.
        """
        rank, world = self._rank_and_world()
        options = self.options
        share = Share.of(rank, world, options.lanes, options.batch_size)
        n_steps = self.n_steps(world)
        n_vectors = int(self._plan.rows.sum())
        wanted = n_steps * options.batch_size * world
        if wanted > n_vectors:
            self._say(
                f"The training text has {n_vectors} vectors ({self.n_train_tokens} tokens in"
                f" {len(self.layers)} layers): max_vectors={self.max_vectors} goes round it again,"
                f" {wanted / n_vectors:.1f} times in all."
            )
        if n_cut := self._plan.n_cut():
            self._say(f"{n_cut} of the documents are too long for one lane and lie in several.")
        made = share.split(self._mesh().dictionary)
        blocks = 2 if options.prefetch else 1
        size = lane_block_bytes(self._train, options.sequences_per_block)
        self._say(
            f"Hidden states in memory: {len(made.lanes)} lanes x {blocks} blocks of"
            f" {options.sequences_per_block} sequences, at most"
            f" {len(made.lanes) * blocks * size / 2**20:.1f} MiB in each process."
        )
        return TrainingBatches(self, share, n_steps)

    def sample(self, n: int) -> HiddenStates:
        """Return at least `n` training vectors if there are, the same on every process.

        They are those of token blocks from everywhere in the text, to start a dictionary from.
        """
        order = self._plan.mixed()
        enough = int(np.searchsorted(np.cumsum(self._plan.rows[order]), n)) + 1
        size = self._train.frame.sequences
        parts = [
            self._train.rows(order[first : min(first + size, enough)])
            for first in range(0, min(enough, len(order)), size)
        ]
        return HiddenStates(*(torch.cat(columns) for columns in zip(*parts, strict=True)))

    def iterate(self, share: Share, n_steps: int) -> Iterator[HiddenStates]:
        """Yield the batches of `share` from the trainer's step (0 without a trainer) on."""
        together = self._mesh().dictionary
        made, first = share.split(together), self._first_step()
        stream = LaneStream(self._plan, self._train, made, first, n_steps, self.options.prefetch)
        batches = iter(stream)
        self._iterators.append(batches if made == share else joined(batches, made, together))
        return self._iterators[-1]

    def val_dataloader(self) -> ValidationBatches | list[HiddenStates]:
        """Return the held-out batches of this process, in order; an empty list if none."""
        rank, world = self._rank_and_world()
        options, rows = self.options, self._rows(self._validation)
        numbers = choose_blocks(rows, options.validation_vectors, options.lanes, world, self.seed)
        self.n_validation_vectors = int(rows[numbers].sum())
        if not len(numbers):
            return []
        return ValidationBatches(self._validation, numbers, rank, world, options.batch_size)

    def about(self) -> dict[str, Any]:
        """Return the transformer as it describes itself, and how the text was cut."""
        return {
            "transformer": self.transformer.describe(),
            "text": {
                "source": self.text.name,
                "block_length": self.options.block_length,
                "special_tokens": self.options.special_tokens,
            },
        }

    @cached_property
    def _fingerprint(self) -> str:
        return self.text.fingerprint()  # which may look through many files

    def order(self) -> dict[str, object]:
        """Return what the order of the data depends on; the place in it is the trainer's step."""
        options, (_, world) = self.options, self._rank_and_world()
        return {
            "seed": self.seed,
            "text": self._fingerprint,
            "training_vectors": int(self._plan.rows.sum()),
            "hidden_states.layers": list(self.layers),
            **{f"hidden_states.{name}": getattr(options, name) for name in ORDER},
            PER_STEP: options.batch_size * world,
        }

    @property
    def extraction_seconds(self) -> float:
        """Seconds that this process has spent on making training vectors."""
        return self._train.seconds

    @property
    def blocks_run(self) -> int:
        """Blocks of the transformer up to the last tapped hidden state."""
        return max(self.layers)

    @property
    def non_finite(self) -> frozenset[tuple[str, int, int]]:
        """Split, document and place of the tokens with a hidden state that is not finite."""
        return frozenset(
            (split, *place)
            for split, soundness in self._soundness().items()
            for place in soundness.non_finite.copy()  # a thread may find another one
        )

    def state_dict(self) -> dict[str, object]:
        """Return the order, and the tokens that are not finite; the processes tell each other."""
        found = sorted(processes.union(self.non_finite))
        self._remember(found)
        return {**self.order(), "non_finite": [list(place) for place in found]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check the order, and remember which tokens were not finite: their number is limited.

        Raises:
            InputError: the vectors would come in another order.
        """
        super().load_state_dict(state_dict)
        self._remember(state_dict.get("non_finite", ()))

    def _remember(self, places: Iterable[Sequence[Any]]) -> None:
        for split, document, position in places:
            self._soundness()[split].non_finite.add((document, position))

    def _soundness(self) -> dict[str, Soundness]:
        return {"train": self._train.soundness, "validation": self._validation.soundness}

    def decode_tokens(self, ids: Iterable[int]) -> list[str]:
        """Return every token as it reads within a sentence."""
        return reading.decode_tokens(self.transformer.tokenizer, ids)

    def _rows(self, extractor: Extractor) -> Integers:
        return extractor.n_tokens(np.arange(len(extractor.blocks.start))) * len(self.layers)
