"""Of the operations that count as the model's, each is counted once, and none that was not done."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from dictlearn.callbacks import throughput
from dictlearn.callbacks.throughput import Throughput
from dictlearn.callbacks.utilisation import model_flops
from dictlearn.dictionary import Dictionary
from dictlearn.ensemble import DictionaryEnsemble, Variant
from dictlearn.hidden_states import CachedDataModule, CachedOptions, DataModule
from dictlearn.inference import Unrolled
from dictlearn.mesh import Mesh, Processes
from dictlearn.prox import TopK
from dictlearn.sharding import share_out_learned
from dictlearn.update import Adam
from tests.small_run import BATCH, LAYERS, small_data, small_learner, small_trainer

STEPS, ATOMS = 4, 64
WIDTH = 384
CEILING = 1e9  # operations a second of one process, instead of those of a GPU


def test_the_flops_are_those_of_the_parts() -> None:
    block = model_flops(width=4, blocks=3, tokens=10, looks=0)
    assert block == 10 * 3 * 2 * (12 * 4 * 4)  # 12 d^2 parameters, two operations for each
    look = model_flops(width=4, blocks=0, tokens=0, looks=5 * 7)
    assert look == 5 * 3 * 2 * (7 * 4)  # x @ atoms.T and its two gradients


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """What is handed to `model_flops`, call by call."""
    calls: list[dict[str, float]] = []

    def kept(width: int, blocks: int, tokens: float, looks: float) -> float:
        calls.append({"width": width, "blocks": blocks, "tokens": tokens, "looks": looks})
        return model_flops(width, blocks, tokens, looks)

    monkeypatch.setattr(throughput, "model_flops", kept)
    return calls


def measuring() -> Throughput:
    """As on a GPU, of which so much is known."""
    made = Throughput()
    made._ceiling = CEILING
    return made


def fit(place: Path, learner: pl.LightningModule, data: DataModule) -> pl.Trainer:
    trainer = small_trainer(place, [measuring()], log_every_n_steps=STEPS)
    trainer.fit(learner, datamodule=data)
    return trainer


def of_one_process(blocks: int, n_atoms: int, layers: int) -> dict[str, float]:
    vectors = STEPS * BATCH
    found = {"width": WIDTH, "blocks": blocks, "tokens": vectors / layers}
    return {**found, "looks": vectors * n_atoms}


def test_a_stream_counts_the_blocks_up_to_the_last_tapped_layer(
    counted: list[dict[str, float]], minilm_folder: Path, text_folder: Path, tmp_path: Path
) -> None:
    data = small_data(minilm_folder, text_folder, tmp_path, steps=2 * STEPS)
    trainer = fit(tmp_path, small_learner(data), data)
    assert counted == 2 * [of_one_process(max(LAYERS), ATOMS, len(LAYERS))]  # logged twice
    figures = {key: float(value) for key, value in trainer.callback_metrics.items()}
    seconds = STEPS * BATCH / figures["train/vectors_per_second"]
    share = model_flops(**counted[0]) / seconds / CEILING  # type: ignore[arg-type]
    assert figures["train/flop_utilisation"] == pytest.approx(share, rel=1e-5)


def test_no_block_is_counted_where_no_transformer_runs(
    counted: list[dict[str, float]], tmp_path: Path
) -> None:
    path = tmp_path / "vectors.npy"
    np.save(path, np.random.default_rng(0).normal(size=(2000, WIDTH)).astype(np.float32))
    options = CachedOptions(str(path), layers=[6], batch_size=BATCH)
    data = CachedDataModule(options, STEPS * BATCH)
    fit(tmp_path, small_learner(data), data)
    assert counted == [of_one_process(0, ATOMS, 1)]


def variant(data: DataModule, n_atoms: int, k: int = 8) -> Variant:
    parts = (Dictionary(n_atoms, WIDTH), TopK(k), Unrolled(), Adam())
    return Variant(*parts, max_vectors=data.max_vectors)


def test_of_several_variants_each_is_counted_and_the_transformer_once(
    counted: list[dict[str, float]], minilm_folder: Path, text_folder: Path, tmp_path: Path
) -> None:
    data = small_data(minilm_folder, text_folder, tmp_path, steps=STEPS)
    fit(tmp_path, DictionaryEnsemble({str(m): variant(data, m) for m in (64, 160)}), data)
    assert counted == [of_one_process(max(LAYERS), 64 + 160, len(LAYERS))]


def test_variants_that_learn_as_one_are_counted_as_one(
    counted: list[dict[str, float]], minilm_folder: Path, text_folder: Path, tmp_path: Path
) -> None:
    data = small_data(minilm_folder, text_folder, tmp_path, steps=STEPS)
    variants = {str(k): variant(data, ATOMS, k) for k in (4, 8)}
    fit(tmp_path, DictionaryEnsemble(variants, branch_at=0.75), data)
    atoms_of_steps = (1 + 1 + 1 + 2) * ATOMS
    assert [calls["looks"] for calls in counted] == [BATCH * atoms_of_steps]


@pytest.mark.parametrize(("groups", "shards"), [(1, 2), (3, 2), (2, 1)])
def test_shards_count_the_whole_dictionary_and_their_common_rows_once(
    groups: int,
    shards: int,
    counted: list[dict[str, float]],
    minilm_folder: Path,
    text_folder: Path,
    tmp_path: Path,
) -> None:
    data = small_data(minilm_folder, text_folder, tmp_path)
    learner, mesh = small_learner(data), Mesh(Processes(0, groups), Processes(0, shards))
    share_out_learned(learner, mesh)
    assert len(learner.dictionary.atoms) == ATOMS // shards
    logged: dict[str, float] = {}
    learner.log_dict = lambda figures, **_: logged.update(figures)  # type: ignore[method-assign]
    trainer: Any = SimpleNamespace(
        strategy=SimpleNamespace(mesh=mesh),
        world_size=groups * shards,
        log_every_n_steps=1,
        datamodule=SimpleNamespace(
            layers=LAYERS, hidden_size=WIDTH, blocks_run=data.blocks_run, extraction_seconds=0.0
        ),
    )
    made = measuring()
    made._run()
    batch = SimpleNamespace(vectors=torch.zeros(BATCH, WIDTH))
    made.on_train_batch_end(trainer, learner, None, batch, 0)
    vectors = groups * BATCH
    tokens, looks = vectors / len(LAYERS), vectors * ATOMS
    assert counted == [{"width": WIDTH, "blocks": 3, "tokens": tokens, "looks": looks}]
    speed = logged["train/vectors_per_second"] / vectors * model_flops(**counted[0])  # type: ignore[arg-type]
    whole = CEILING * groups * shards
    assert logged["train/flop_utilisation"] == pytest.approx(speed / whole)
