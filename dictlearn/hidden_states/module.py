"""What training asks of hidden states, wherever they come from."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Generator, Iterable, Iterator
from typing import Any, Protocol

import pytorch_lightning as pl
import torch

from dictlearn.errors import whole_number
from dictlearn.hidden_states import reading
from dictlearn.hidden_states.batch import HiddenStates
from dictlearn.hidden_states.order import check_order
from dictlearn.hidden_states.statistics import Normalization, Statistics
from dictlearn.hidden_states.validation import spread_sample
from dictlearn.mesh import Mesh, mesh_of
from dictlearn.text import TokenStore

log = logging.getLogger(__name__)

SOME = 256
"""Held-out rows on which an encoder or a gap is known to one or two hundredths."""


class BatchOptions(Protocol):
    """The options that every source of hidden states has."""

    @property
    def batch_size(self) -> int:
        """Vectors per training batch and process."""
        ...

    @property
    def validation_vectors(self) -> int:
        """Largest number of held-out vectors."""
        ...


class Named(Protocol):
    """A transformer, as far as a page shows it."""

    @property
    def name(self) -> str:
        """Its short name."""
        ...


class NamedText(Protocol):
    """A text, as far as a page and the main job ask for it."""

    @property
    def name(self) -> str:
        """Its short name."""
        ...

    @property
    def validation_fraction(self) -> float:
        """Share of it that is held out."""
        ...


class Batches(Protocol):
    """Batches of known number."""

    def __len__(self) -> int:
        """Return their number."""
        ...

    def __iter__(self) -> Iterator[HiddenStates]:
        """Go through them."""
        ...


class TrainingBatches:
    """All batches of a run, from the trainer's step on; its length is that of the whole run."""

    def __init__(self, module: DataModule, share: Any, n_steps: int) -> None:
        self._module, self._share, self._n_steps = module, share, n_steps

    def __len__(self) -> int:
        return self._n_steps

    def __iter__(self) -> Iterator[HiddenStates]:
        return self._module.iterate(self._share, self._n_steps)

    def state_dict(self) -> dict[str, object]:
        """Return nothing: the trainer's step is the whole state of the stream."""
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Take nothing; that this exists tells Lightning that the stream goes on exactly."""


class DataModule(pl.LightningDataModule):
    """Hidden states in batches, in an order that is a pure function of (seed, step).

    Args:
        options: options of the stream.
        max_vectors: training vectors of the whole run, over all processes.
        seed: seed of the run.

    Attributes:
        transformer: what the hidden states come from, by name.
        text: what the transformer read, by name.
        layers: tapped indices of `hidden_states`.
        hidden_size: width of a vector.
        shows_text: whether `context` and `decode_tokens` know any text.
        store: the tokenised text (after `setup`, like all that follow).
        n_validation_vectors: vectors of a validation (after `val_dataloader`).
        statistics: means, norms and scales of the layers.
        normalization: the normalisation made from them.
        device: where the vectors are made, where there is no trainer to say it.
    """

    transformer: Named
    text: NamedText
    options: BatchOptions
    layers: tuple[int, ...]
    hidden_size: int
    shows_text: bool = True
    store: TokenStore
    statistics: Statistics
    normalization: Normalization

    def __init__(self, options: BatchOptions, max_vectors: float, seed: int) -> None:
        super().__init__()
        self.options = options
        self.max_vectors = whole_number("max_vectors", max_vectors)
        self.seed = seed
        self.n_validation_vectors = 0
        self.device = torch.device("cpu")
        self._device: torch.device | None = None
        self._iterators: list[Generator[HiddenStates, None, None]] = []

    @abstractmethod
    def train_dataloader(self) -> TrainingBatches:
        """Return the batches of the whole run for this process."""

    @abstractmethod
    def val_dataloader(self) -> Batches | list[HiddenStates]:
        """Return the held-out batches of this process, in order; an empty list if none."""

    @abstractmethod
    def iterate(self, share: Any, n_steps: int) -> Iterator[HiddenStates]:
        """Yield the batches of this process from the trainer's step (0 without one) on."""

    @abstractmethod
    def sample(self, n: int) -> HiddenStates:
        """Return at least `n` training vectors if there are, the same on every process."""

    @abstractmethod
    def decode_tokens(self, ids: Iterable[int]) -> list[str]:
        """Return every token as it reads within a sentence."""

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """Return what the artefact says of ``transformer`` and ``text``."""

    @property
    @abstractmethod
    def extraction_seconds(self) -> float:
        """Seconds that this process has spent on making training vectors."""

    @property
    @abstractmethod
    def blocks_run(self) -> int:
        """Blocks of the transformer that a token passes through for its vectors."""

    @property
    @abstractmethod
    def non_finite(self) -> frozenset[tuple[str, int, int]]:
        """Split, document and place of the tokens that this process left out because a hidden
        state of theirs is not finite.
        """  # noqa: D205

    @abstractmethod
    def order(self) -> dict[str, object]:
        """Return what the order of the data depends on; the place in it is the trainer's step."""

    def n_steps(self, world: int) -> int:
        """Return the number of training steps of `world` processes."""
        return math.ceil(self.max_vectors / (self.options.batch_size * world))

    def tokens_seen(self, step: int) -> int:
        """Return how many tokens (vectors by layers) all processes have seen after `step` steps."""
        _, world = self._rank_and_world()
        return step * self.options.batch_size * world // len(self.layers)

    def some_held_out(self, states: HiddenStates) -> torch.Tensor:
        """Return which held-out rows to choose, bool `[n]`, where all of them would cost too much.

        In a validation about `SOME`; the same ones on any number of processes.
        """
        return spread_sample(states, max(1, self.n_validation_vectors // SOME))

    def state_dict(self) -> dict[str, object]:
        """Return what `load_state_dict` is to check."""
        return self.order()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that a run that goes on sees its vectors in the order it began with.

        Raises:
            InputError: it does not.
        """
        check_order(state_dict, self.order(), self._rank_and_world()[1])

    def context(self, document: int, position: int, before: int, after: int) -> reading.Context:
        """Return the token ids around a token of a document, and where among them it is."""
        return reading.context(self.store, document, position, before, after)

    def teardown(self, stage: str | None = None) -> None:
        """End the background threads."""
        while self._iterators:
            self._iterators.pop().close()

    def on_exception(self, exception: BaseException) -> None:
        """End the background threads."""
        self.teardown()

    def _first_step(self) -> int:
        return 0 if self.trainer is None else self.trainer.global_step

    def _root_device(self) -> torch.device:
        return self.device if self.trainer is None else self.trainer.strategy.root_device

    def _rank_and_world(self) -> tuple[int, int]:
        data = self._mesh().data
        return data.rank, data.count

    def _mesh(self) -> Mesh:
        return Mesh() if self.trainer is None else mesh_of(self.trainer)

    def _say(self, sentence: str) -> None:
        if self.trainer is None or self.trainer.is_global_zero:
            log.info(sentence)
