"""Whole runs: what a checkpoint holds, taking a run up in the middle, and two processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from dictlearn import training
from dictlearn.callbacks.revival import DeadAtomRevival
from dictlearn.hidden_states import HiddenStateDataModule
from dictlearn.inference import Unrolled
from dictlearn.learner import DictionaryLearner
from dictlearn.prox import TopK, Weighted
from dictlearn.storage.saved import load
from dictlearn.update import Adam, HessianDiagonalRule, UpdateRule
from tests.small_run import BATCH, small_learner, small_trainer
from tests.watch import HELD_OUT_KEYS, exact, learned

MakeData = Callable[..., HiddenStateDataModule]


def values(node: Any) -> Iterator[Any]:
    """Yield every leaf of nested dictionaries, lists and tuples."""
    if isinstance(node, dict):
        for key, value in node.items():
            assert isinstance(key, str | int | torch.Tensor), key
            yield from values(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from values(value)
    else:
        yield node


SETTINGS: dict[str, Callable[[], dict[str, Any]]] = {
    "topk and adam": lambda: {"bias": True},
    "untied layers with momentum": lambda: {"inference": Unrolled(3, "untied", momentum=True)},
    "the paper's": lambda: {**exact(), "update": HessianDiagonalRule()},
}


def checkpointed(
    data: HiddenStateDataModule, folder: Path, start: Path | None, **parts: Any
) -> tuple[DictionaryLearner, pl.Trainer]:
    learner = small_learner(data, n_atoms=192, dead_after_vectors=2 * BATCH, **parts)
    saved = ModelCheckpoint(
        folder, "{step}", monitor="val/fvu", save_top_k=-1, save_on_train_epoch_end=False
    )
    trainer = small_trainer(
        folder,
        [DeadAtomRevival(2 * BATCH, 0.9, seed=1), saved],
        enable_checkpointing=True,
        limit_val_batches=1.0,
        val_check_interval=4,
    )
    trainer.fit(learner, datamodule=data, ckpt_path=start)
    return learner, trainer


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_run_taken_up_in_the_middle_ends_bit_equal(
    setting: str, make_data: MakeData, tmp_path: Path
) -> None:
    parts = SETTINGS[setting]
    whole, first = checkpointed(make_data(steps=9), tmp_path / "a", None, **parts())
    middle = tmp_path / "a" / "step=4.ckpt"
    taken_up, second = checkpointed(make_data(steps=9), tmp_path / "b", middle, **parts())
    assert first.global_step == second.global_step == 9
    assert whole.vectors_seen == taken_up.vectors_seen == 9 * BATCH
    found, expected = taken_up.state_dict(), whole.state_dict()
    assert set(found) == set(expected)
    for key, value in expected.items():
        assert torch.equal(found[key], value), key
    revived = [trainer.callbacks[0].revived for trainer in (first, second)]  # type: ignore[attr-defined]
    assert revived[0] == revived[1]
    if setting != "the paper's":
        assert revived[0] > 0
    assert first.callback_metrics.keys() == second.callback_metrics.keys()
    for key, value in first.callback_metrics.items():
        assert torch.equal(second.callback_metrics[key], value), key


def test_a_checkpoint_holds_only_plain_tensors_and_values(
    make_data: MakeData, tmp_path: Path
) -> None:
    learner, trainer = checkpointed(make_data(steps=4), tmp_path, None)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    kinds = {type(leaf) for leaf in values(checkpoint)}
    assert kinds <= {torch.Tensor, int, float, str, bool, type(None)}
    assert checkpoint["vectors_seen"] == learner.vectors_seen == 4 * BATCH
    assert checkpoint["hyper_parameters"] == {"config": {"seed": 3}}
    for key, value in learner.state_dict().items():
        assert torch.equal(checkpoint["state_dict"][key], value), key


class Report(pl.Callback):
    """Leaves on disk what every process ends with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        learner = learned(pl_module)
        figures = {key: value.clone() for key, value in trainer.callback_metrics.items()}
        found = {**learner.state_dict(), "seen": torch.tensor(learner.vectors_seen), **figures}
        torch.save(found, self.folder / f"{trainer.world_size}-{trainer.global_rank}.pt")


def ended(
    data: HiddenStateDataModule, place: Path, processes: int, *others: pl.Callback, **parts: Any
) -> list[dict[str, Tensor]]:
    """Train with so many processes; return what each of them ended with."""
    learner = small_learner(data, n_atoms=128, dead_after_vectors=2 * BATCH, **parts)
    strategy = "ddp_fork" if processes > 1 else "auto"
    trainer = small_trainer(
        place,
        [*others, Report(place)],
        devices=processes,
        strategy=strategy,
        limit_val_batches=1.0,
        val_check_interval=4,
    )
    trainer.fit(learner, datamodule=data)
    files = [place / f"{processes}-{rank}.pt" for rank in range(processes)]
    return [torch.load(file, weights_only=True) for file in files]


@pytest.mark.parametrize(
    "rule", [Adam(warmup_vectors=0), HessianDiagonalRule()], ids=["adam", "hessian_diagonal"]
)
def test_two_processes_stay_equal_and_learn_what_one_learns(
    rule: UpdateRule, make_data: MakeData, tmp_path: Path
) -> None:
    one_data, two_data = make_data(steps=8), make_data(steps=16, batch_size=BATCH // 2)
    first, second = ended(two_data, tmp_path, 2, update=rule)
    (alone,) = ended(one_data, tmp_path, 1, update=rule)
    assert int(first["seen"]) == int(second["seen"]) == int(alone["seen"]) == 8 * BATCH
    held_out = [key for key in alone if key.startswith("val/")]
    assert len(held_out) == len(HELD_OUT_KEYS)
    for key in alone:
        if not key.startswith("train/"):
            assert torch.equal(first[key], second[key]), key
            torch.testing.assert_close(first[key], alone[key], rtol=2e-3, atol=2e-3)
    assert torch.equal(first["idle"], alone["idle"])


def test_dead_atoms_are_replaced_alike_on_two_processes(
    make_data: MakeData, tmp_path: Path
) -> None:
    revival = DeadAtomRevival(2 * BATCH, 0.9)
    parts = {"prox": TopK(2)}
    data = make_data(steps=12, batch_size=BATCH // 2)
    first, second = ended(data, tmp_path, 2, revival, **parts)
    (plain, _) = ended(make_data(steps=12, batch_size=BATCH // 2), tmp_path, 2, **parts)
    assert torch.equal(first["dictionary.atoms"], second["dictionary.atoms"])
    assert torch.equal(first["idle"], second["idle"])
    assert not torch.equal(first["dictionary.atoms"], plain["dictionary.atoms"])


def test_figures_of_an_earlier_dictionary_are_not_those_of_the_last(
    make_data: MakeData, tmp_path: Path
) -> None:
    data = make_data(steps=2)
    learner, trainer = small_learner(data), small_trainer(tmp_path)  # it does not validate
    learner.held_out_figures, learner.validated_at = {"val/fvu": 0.5}, 1  # of a checkpoint
    trainer.fit(learner, datamodule=data)
    assert training._held_out(trainer, learner, data) == {}


def test_a_saved_dictionary_has_the_weights_it_was_learned_with(
    make_data: MakeData, tmp_path: Path
) -> None:
    file, weights = tmp_path / "weights.npy", np.linspace(1, 2, 64)
    np.save(file, weights)
    data = make_data(steps=2)
    learner = small_learner(data, Weighted(0.1, str(file)))
    small_trainer(tmp_path).fit(learner, datamodule=data)
    prox = {"_target_": "dictlearn.prox.Weighted", "lambda_": 0.1, "weights": str(file)}
    inference = {"_target_": "dictlearn.inference.Unrolled"}
    learner.hparams["config"] = {"prox": prox, "inference": inference}
    np.save(file, np.ones(64))
    for gone in (False, True):
        if gone:
            file.unlink()
        training._save(tmp_path, learner, data, {})
        saved = load(tmp_path).prox
        assert isinstance(saved, Weighted)
        assert torch.equal(saved.weights, torch.from_numpy(weights))
