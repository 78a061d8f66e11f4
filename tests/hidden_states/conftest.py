"""A text made here, the real embedded transformer, and small ways to put them together."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pytest

from dictlearn.hidden_states.datamodule import HiddenStateDataModule
from dictlearn.hidden_states.extraction import Extractor, Frame
from dictlearn.hidden_states.lanes import LanePlan
from dictlearn.hidden_states.options import StreamOptions
from dictlearn.text import Document, TokenStore, pack, tokenize
from dictlearn.transformer import FrozenTransformer

SUBJECTS = ("the river", "a farmer", "my sister", "the old bank", "every teacher", "a grey cat")
VERBS = ("follows", "remembers", "paints", "carries", "watches", "forgets", "repairs", "describes")
OBJECTS = ("the bridge", "a letter", "seven apples", "the violin", "an empty room", "her garden")
ENDS = ("in the morning", "without a word", "for the first time", "near the harbour", "again", "")


class Written:
    """A text of short documents of very different lengths, made from a seed."""

    def __init__(self, n_documents: int = 60, validation_fraction: float = 0.0) -> None:
        self.validation_fraction = validation_fraction
        self._n = n_documents

    @property
    def name(self) -> str:
        return f"written:{self._n}"

    def fingerprint(self) -> str:
        return f"written-{self._n}-1"

    def documents(self) -> Iterator[Document]:
        draw = random.Random(5)
        for i in range(self._n):
            sentences = (
                " ".join(draw.choice(words) for words in (SUBJECTS, VERBS, OBJECTS, ENDS)).strip()
                for _ in range(draw.choice((1, 1, 2, 4, 7)))
            )
            yield Document(f"written {i}", f"{i}. " + ". ".join(sentences) + ".")


class Reversed(Written):
    """The same documents, the last one first: another text of the same size."""

    def fingerprint(self) -> str:
        return f"reversed {super().fingerprint()}"

    def documents(self) -> Iterator[Document]:
        yield from reversed([*super().documents()])


class Bench(NamedTuple):
    store: TokenStore
    extractor: Extractor
    plan: LanePlan


class MakeModule(Protocol):
    def __call__(
        self, text: Written | None = ..., max_vectors: float = ..., seed: int = ..., **options: Any
    ) -> HiddenStateDataModule: ...


SMALL: dict[str, Any] = {
    "layers": (0, 3),
    "batch_size": 32,
    "block_length": 16,
    "lanes": 4,
    "sequences_per_block": 4,
    "validation_vectors": 400,
    "statistics_tokens": 200,
    "prefetch": False,
}


@pytest.fixture(scope="session")
def transformer() -> FrozenTransformer:
    made = FrozenTransformer(dtype="float32")
    made.load()
    return made


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def store(transformer: FrozenTransformer, data_dir: Path) -> TokenStore:
    return tokenize(Written(), transformer.tokenizer, data_dir / "tokens")


@pytest.fixture(scope="session")
def bench(transformer: FrozenTransformer, store: TokenStore) -> Bench:
    """All documents, two layers, four lanes."""
    blocks = pack(store, np.ones(len(store.document_ids), dtype=bool), 16)
    before, after = transformer.special_affixes
    frame = Frame(16, before, after, sequences=4)
    extractor = Extractor(transformer, store, blocks, (0, 3), frame)
    rows = 2 * extractor.n_tokens(np.arange(len(blocks.start)))
    plan = LanePlan(rows, blocks.document, 4, 4, seed=0)
    return Bench(store, extractor, plan)


@pytest.fixture
def make_module(transformer: FrozenTransformer, data_dir: Path) -> MakeModule:
    def make(
        text: Written | None = None, max_vectors: float = 320, seed: int = 0, **options: Any
    ) -> HiddenStateDataModule:
        chosen = StreamOptions(**{**SMALL, **options})
        text = Written() if text is None else text
        return HiddenStateDataModule(transformer, text, chosen, max_vectors, seed, data_dir)

    return make
