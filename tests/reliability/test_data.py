"""Text and numbers as they come: dirty, doubled, padded, in half precision."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dictlearn.hidden_states import HiddenStateDataModule, HiddenStates, StreamOptions
from dictlearn.inference import ExchangePursuit, Fista, Iterative, Unrolled, WorkingSet
from dictlearn.prox import BatchTopK, Soft, TopK
from dictlearn.transformer import FrozenTransformer
from dictlearn.update import Adam, HessianDiagonalRule
from tests.small_run import small_learner, small_trainer
from tests.text.conftest import Given, sentences
from tests.text.test_tokens import DIRTY

GIGANTIC = "A line of one document that has no end in sight. " * 4_000


@cache
def model(dtype: str) -> FrozenTransformer:
    """The embedded transformer in a number format, loaded once."""
    return FrozenTransformer(dtype=dtype)


def stream(
    texts: tuple[str, ...], folder: Path, dtype: str = "float32", **options: Any
) -> HiddenStateDataModule:
    """A stream over these texts, of 4 steps."""
    chosen: dict[str, Any] = {"layers": (0, 3), "batch_size": 128, "block_length": 16, "lanes": 4}
    chosen |= {"sequences_per_block": 8, "validation_vectors": 128, "prefetch": False}
    return HiddenStateDataModule(
        model(dtype),
        Given(texts, options.pop("validation_fraction", 0.3)),
        StreamOptions(**{**chosen, "statistics_tokens": 256, **options}),
        max_vectors=4 * 128,
        seed=3,
        data_dir=folder,
    )


def test_dirty_and_gigantic_documents_are_trained_on(tmp_path: Path) -> None:
    """B6, B9 blanks, NUL, emoji, lone surrogates, a word of 5,000 letters, a gigantic document:
    every real token is a vector once, none is padding, and nothing is NaN.
    """
    texts = (*DIRTY[:-1], GIGANTIC, *(sentences(n, n + 1 + n % 5) for n in range(40)))
    data = stream(texts, tmp_path, validation_fraction=0.0)
    data.setup()
    store = data.store
    everything = np.arange(len(data._train.blocks.start))
    rows = data._train.rows(everything[-300:])
    lengths = np.diff(store.offsets)
    assert data.n_train_tokens == lengths.sum() == store.meta["tokens"] > 40_000
    assert store.meta["dropped_without_tokens"] == 4
    assert data._plan.rows.sum() == 2 * lengths.sum()  # two layers
    assert len(rows.layer) == data._plan.rows[everything[-300:]].sum()
    special = set(data.transformer.tokenizer.all_special_ids) - {
        data.transformer.tokenizer.unk_token_id
    }
    assert not special & set(rows.token.tolist())
    counted = np.zeros(len(lengths), dtype=np.int64)
    np.add.at(counted, rows.document.numpy(), 1)
    whole = np.flatnonzero(counted)[1:]  # the first of them may have begun before
    assert np.array_equal(counted[whole], 2 * lengths[whole])
    learner = small_learner(data)
    small_trainer(tmp_path).fit(learner, datamodule=data)
    assert all(tensor.isfinite().all() for tensor in learner.state_dict().values())


def test_a_batch_of_nothing_but_unknown_words_is_finite(tmp_path: Path) -> None:
    """B6 every token of a text is unknown to the model: the run is finite to its end."""
    texts = tuple("漢字" * 30 + "仮" * n for n in range(1, 60))
    data = stream(texts, tmp_path, normalization="center")
    learner = small_learner(data)
    trainer = small_trainer(tmp_path, limit_val_batches=1.0)
    trainer.fit(learner, datamodule=data)
    assert all(tensor.isfinite().all() for tensor in learner.state_dict().values())
    assert math.isfinite(float(trainer.callback_metrics["val/l0"]))


@pytest.mark.parametrize("order", [1, -1])
def test_half_of_the_documents_are_duplicates(order: int, tmp_path: Path) -> None:
    """B8 half of the documents come twice, in any order: the same ones are kept and counted."""
    texts = tuple(sentences(n, n + 3) for n in range(50))
    data = stream((texts + texts)[::order], tmp_path)
    data.setup()
    once = stream(texts, tmp_path)
    once.setup()
    assert data.store.meta["dropped_duplicates"] == 50
    assert set(data.store.content_hashes) == set(once.store.content_hashes)
    assert data.n_train_tokens == once.n_train_tokens


PARTS: dict[str, dict[str, Any]] = {
    "topk": {"prox": TopK(8), "inference": Unrolled(2), "update": Adam(warmup_vectors=0)},
    "fista": {
        "prox": Soft(0.05),
        "inference": Iterative(Fista(), tolerance=1e-3),
        "update": HessianDiagonalRule(),
    },
    "working set": {"prox": Soft(0.05), "inference": WorkingSet()},
    "pursuit": {"prox": BatchTopK(8), "inference": ExchangePursuit()},
}
TEXTS = tuple(sentences(n, n + 4) for n in range(60))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("formats")


@pytest.mark.run
@pytest.mark.parametrize(
    ("dtype", "parts"),
    [("bfloat16", "fista"), ("bfloat16", "pursuit"), *(("float16", name) for name in PARTS)],
)
def test_any_number_format_of_the_model_gives_a_finite_run_in_32_bits(
    dtype: str, parts: str, place: Path
) -> None:
    """B4, B5 the model computes in 32 bits, bfloat16 or float16: vectors, statistics, atoms and
    figures are float32 and finite.
    """
    data = stream(TEXTS, place, dtype=dtype)
    learner = small_learner(data, **PARTS[parts])
    trainer = small_trainer(place, limit_val_batches=1.0)
    trainer.fit(learner, datamodule=data)
    rows = data.sample(64)
    assert rows.vectors.dtype == torch.float32
    assert all(t.dtype == torch.float32 and bool(t.isfinite().all()) for t in data.statistics)
    for name, tensor in learner.state_dict().items():
        if tensor.is_floating_point():
            assert tensor.dtype in (torch.float32, torch.float64), name
            assert tensor.isfinite().all(), name
    assert 0 < learner.held_out_figures["val/fvu"] < 1
    assert all(math.isfinite(figure) for figure in learner.held_out_figures.values())


def test_vectors_too_long_for_half_precision_are_measured(place: Path) -> None:
    """B4 vectors whose squares do not fit into float16: statistics and codes stay finite."""
    data = stream(TEXTS, place, dtype="float16")
    learner = small_learner(data, prox=TopK(8))
    small_trainer(place).fit(learner, datamodule=data)
    rows = data.sample(64)
    long = (rows.vectors * 3000).half().float()
    assert bool((long.half().square().sum(-1).isinf()).any())  # what would go wrong
    states = HiddenStates(long, *rows[1:])
    x, solution = learner.infer(states)
    assert x.dtype == solution.codes.values.dtype == torch.float32
    assert solution.codes.values.isfinite().all()
