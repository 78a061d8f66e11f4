"""Dictionaries that learn side by side are, bit by bit, those that separate runs learn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from dictlearn.callbacks.checkpoints import RunCheckpoints
from dictlearn.callbacks.revival import DeadAtomRevival
from dictlearn.callbacks.throughput import Throughput
from dictlearn.callbacks.variants import ForVariant
from dictlearn.dictionary import Dictionary
from dictlearn.ensemble import DictionaryEnsemble, Variant, learners
from dictlearn.errors import InputError, Stopped
from dictlearn.hidden_states import HiddenStateDataModule
from dictlearn.inference import ExchangePursuit, TwoPhase, Unrolled, WorkingSet
from dictlearn.learner import DictionaryLearner
from dictlearn.loggers.csv import CsvLogger
from dictlearn.prox import BatchTopK, Jump, TopK
from dictlearn.resuming import checkpoint_to_go_on_from
from dictlearn.transformer import FrozenTransformer
from dictlearn.update import Adam, FirstAdam, JointOptimizer, Phased, ThenHessianDiagonal
from tests.resume.interrupted import (
    Interrupt,
    assert_same_end,
    equal,
    final_state,
    finish,
    history,
)
from tests.small_run import BATCH, STEPS, small_trainer

L = TypeVar("L", bound=DictionaryLearner)

CLIP = 0.01


def parts(name: str) -> dict[str, Any]:
    """What the learner of a variant is made of: fresh objects at every call."""
    if name == "topk":
        return {"prox": TopK(2), "inference": Unrolled(), "update": Adam(warmup_vectors=0)}
    if name == "jump":
        one = Unrolled(1, "untied")
        return {"prox": Jump(0.1, target_l0=8.0), "inference": one, "update": Adam()}
    inference = TwoPhase(
        Unrolled(1, "tied"), WorkingSet(), ExchangePursuit(), 0.25, 0.25, distil="none"
    )
    update = Phased(FirstAdam(warmup_vectors=0), ThenHessianDiagonal())
    return {"prox": BatchTopK(8), "inference": inference, "update": update}


SHAPES: dict[str, dict[str, Any]] = {
    "topk": {"n_atoms": 160, "bias": True, "seed": 3},
    "jump": {"n_atoms": 96, "initialization": "data", "seed": 4},
    "two_phase": {"n_atoms": 384, "seed": 5},
}


def learner_of(kind: type[L], name: str, data: HiddenStateDataModule) -> L:
    shape = {"initialization": "gaussian", "dead_after_vectors": 2 * BATCH, **SHAPES[name]}
    dictionary = Dictionary(width=data.hidden_size, **shape)
    return kind(dictionary, **parts(name), max_vectors=data.max_vectors, seed=SHAPES[name]["seed"])


def ensemble_of(data: HiddenStateDataModule, *names: str) -> DictionaryEnsemble:
    return DictionaryEnsemble({name: learner_of(Variant, name, data) for name in names or SHAPES})


def revival(name: str) -> DeadAtomRevival:
    return DeadAtomRevival(2 * BATCH, 0.9, seed=SHAPES[name]["seed"], duplicate_cosine=0.3)


def fit(
    folder: Path, module: pl.LightningModule, data: HiddenStateDataModule, *others: pl.Callback
) -> pl.Trainer:
    trainer = small_trainer(
        folder, others, limit_val_batches=1.0, val_check_interval=4, gradient_clip_val=CLIP
    )
    trainer.fit(module, datamodule=data)
    return trainer


@pytest.fixture(scope="module")
def joint(
    make_shared: Callable[..., HiddenStateDataModule], tmp_path_factory: pytest.TempPathFactory
) -> tuple[DictionaryEnsemble, pl.Trainer]:
    """Three variants that learned side by side."""
    data = make_shared()
    module = ensemble_of(data)
    hung = [ForVariant(name, revival(name)) for name in SHAPES]
    trainer = fit(tmp_path_factory.mktemp("joint"), module, data, *hung, Throughput())
    return module, trainer


@pytest.mark.parametrize("name", SHAPES)
def test_each_ends_bit_equal_to_a_run_of_its_own(
    name: str,
    joint: tuple[DictionaryEnsemble, pl.Trainer],
    make_shared: Callable[..., HiddenStateDataModule],
    tmp_path: Path,
) -> None:
    ensemble, trainer = joint
    data = make_shared()
    alone, own = learner_of(DictionaryLearner, name, data), revival(name)
    separate = fit(tmp_path, alone, data, own)
    found = ensemble.parts[name]
    for key, value in alone.state_dict().items():
        assert torch.equal(value, found.state_dict()[key]), key
    expected = separate.optimizers[0].state_dict()
    assert_equal(expected, found.optimizer.state_dict())
    assert found.held_out_figures == alone.held_out_figures
    assert (found.vectors_seen, found.validated_at) == (alone.vectors_seen, alone.validated_at)
    assert torch.equal(found.validation_firing_frequency, alone.validation_firing_frequency)
    hung = {c.name: c.callback for c in trainer.callbacks if isinstance(c, ForVariant)}  # type: ignore[attr-defined]
    assert hung[name].state_dict() == own.state_dict()
    assert own.revived > 0
    logged = trainer.callback_metrics
    for key, value in separate.callback_metrics.items():
        assert torch.equal(value, logged[f"{name}/{key}"]), key


def assert_equal(expected: Any, found: Any, name: str = "") -> None:
    if isinstance(expected, dict):
        assert expected.keys() == found.keys(), name
        for key in expected:
            assert_equal(expected[key], found[key], f"{name}.{key}")
    elif isinstance(expected, list):
        assert len(expected) == len(found), name
        for number, value in enumerate(expected):
            assert_equal(value, found[number], f"{name}[{number}]")
    else:
        assert equal(expected, found), name


def test_one_optimizer_counts_one_step_a_batch_and_the_best_gives_the_plain_figures(
    joint: tuple[DictionaryEnsemble, pl.Trainer],
) -> None:
    ensemble, trainer = joint
    assert trainer.global_step == STEPS
    assert isinstance(trainer.optimizers[0], JointOptimizer)
    fvu = {name: part.held_out_figures["val/fvu"] for name, part in ensemble.parts.items()}
    assert ensemble.held_out_figures["val/fvu"] == min(fvu.values())
    assert float(trainer.callback_metrics["val/fvu"]) == pytest.approx(min(fvu.values()))
    assert {f"{name}/val/fvu" for name in fvu} <= set(ensemble.held_out_figures)
    assert float(trainer.callback_metrics["time/inference"]) > 0
    assert learners(ensemble) == ensemble.parts
    names = set(ensemble.parts["topk"].optimizer.guard.names.values())
    assert "topk/dictionary.atoms" in names


def test_the_transformer_runs_once_for_all(
    make_shared: Callable[..., HiddenStateDataModule],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    extract, passes = FrozenTransformer.hidden_states, [0]

    def counted(self: FrozenTransformer, *given: Any, **options: Any) -> Tensor:
        passes[0] += 1
        return extract(self, *given, **options)

    monkeypatch.setattr(FrozenTransformer, "hidden_states", counted)
    found = []
    for names in (("two_phase",), ("two_phase", "topk", "jump")):
        passes[0] = 0
        data = make_shared()
        fit(tmp_path, ensemble_of(data, *names), data)
        found.append(passes[0])
    one, three = found
    assert 10 < one <= three < 1.3 * one  # samples to start from have three sizes


def go(
    folder: Path,
    data: HiddenStateDataModule,
    *others: pl.Callback,
    names: tuple[str, ...] = tuple(SHAPES),
) -> None:
    """Begin or go on with a run of all variants, as the main job does."""
    found = checkpoint_to_go_on_from(folder, "auto")
    hung = [ForVariant(name, revival(name)) for name in names]
    trainer = small_trainer(
        folder,
        [*hung, RunCheckpoints(folder, every_minutes=None), *others],
        enable_checkpointing=True,
        logger=CsvLogger(folder),
        limit_val_batches=1.0,
        val_check_interval=4,
        log_every_n_steps=2,
    )
    module = ensemble_of(data, *names)
    trainer.fit(module, datamodule=data, ckpt_path=None if found is None else found.path)
    finish(trainer)


def test_a_stopped_run_of_several_ends_bit_equal(
    make_shared: Callable[..., HiddenStateDataModule], tmp_path: Path
) -> None:
    go(tmp_path / "straight", make_shared())
    for stop in (Interrupt(2), Interrupt(4, in_validation=True), Interrupt(10)):
        with pytest.raises(Stopped, match=f"SIGTERM after step {stop.step}"):
            go(tmp_path / "stopped", make_shared(), stop)
    go(tmp_path / "stopped", make_shared())
    assert_same_end(tmp_path / "straight", tmp_path / "stopped", equal)
    assert history(tmp_path / "straight") == history(tmp_path / "stopped")
    names = final_state(tmp_path / "straight")
    assert any("jump/DeadAtomRevival" in name for name in names)
    assert any("parts[2].state" in name and "energy" in name for name in names)


class Keep(pl.Callback):
    """Leaves the learners of a process on the disk, by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for name, learner in learners(pl_module).items():
            kept = {**learner.state_dict(), "seen": torch.tensor(learner.vectors_seen)}
            kept |= {key: torch.tensor(v) for key, v in learner.held_out_figures.items()}
            self.folder.mkdir(exist_ok=True)
            torch.save(kept, self.folder / f"{name}-{trainer.global_rank}.pt")


def test_on_two_processes_each_is_what_a_run_of_its_own_is(
    make_shared: Callable[..., HiddenStateDataModule], tmp_path: Path
) -> None:
    def on_two(module: pl.LightningModule, data: HiddenStateDataModule, *hung: pl.Callback) -> None:
        trainer = small_trainer(
            tmp_path,
            [*hung, Keep(tmp_path / "kept")],
            devices=2,
            strategy="ddp_fork",
            limit_val_batches=1.0,
            val_check_interval=4,
        )
        trainer.fit(module, datamodule=data)

    names = ("topk", "two_phase")
    data = make_shared(2)
    on_two(ensemble_of(data, *names), data, *(ForVariant(name, revival(name)) for name in names))
    for name in names:
        data = make_shared(2)
        on_two(learner_of(DictionaryLearner, name, data), data, revival(name))
        for rank in (0, 1):
            alone, found = (
                torch.load(tmp_path / "kept" / f"{which}-{rank}.pt") for which in ("", name)
            )
            assert int(found["seen"]) == STEPS * BATCH
            assert alone.keys() == found.keys()
            for key in alone:
                torch.testing.assert_close(found[key], alone[key], rtol=1e-4, atol=1e-5)


def test_other_variants_than_the_checkpoint_has_are_refused(
    make_shared: Callable[..., HiddenStateDataModule], tmp_path: Path
) -> None:
    with pytest.raises(Stopped):
        go(tmp_path, make_shared(), Interrupt(2), names=("topk", "jump"))
    with pytest.raises(InputError, match=r"the variants topk, jump, and this run has jump, topk"):
        go(tmp_path, make_shared(), names=("jump", "topk"))
