"""Whole runs with the atoms in parts: real processes learn what one process learns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from dictlearn.hidden_states import HiddenStateDataModule
from dictlearn.inference import Unrolled
from dictlearn.parallel import DictionaryParallel
from tests.small_run import BATCH, small_data, small_learner, small_trainer
from tests.watch import HELD_OUT_KEYS, learned

MakeData = Callable[..., HiddenStateDataModule]
Ended = dict[str, Tensor]


@pytest.fixture(scope="module")
def make_data(
    minilm_folder: Path, text_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> MakeData:
    place = tmp_path_factory.mktemp("data")

    def make(**options: Any) -> HiddenStateDataModule:
        return small_data(minilm_folder, text_folder, place, **options)

    return make


class Report(pl.Callback):
    """Leaves on disk what process 0 ends with, joined from all shards, and checkpoints."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        learner = learned(pl_module)
        figures = {key: value.clone() for key, value in trainer.callback_metrics.items()}
        rank = trainer.global_rank
        atoms = learner.dictionary.atoms.detach().clone()
        torch.save({**figures, "part": atoms}, self.folder / f"rank-{rank}.pt")
        found = {**learner.state_dict(), **figures, "seen": torch.tensor(learner.vectors_seen)}
        if trainer.is_global_zero:
            torch.save(found, self.folder / "ended.pt")
        trainer.save_checkpoint(self.folder / "last.ckpt")

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step % 3 == 0:
            trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


def ended(
    data: HiddenStateDataModule,
    place: Path,
    *others: pl.Callback,
    shards: int = 1,
    copies: int = 1,
    start: Path | None = None,
    **parts: Any,
) -> Ended:
    """Train with so many shards and copies of them; return what the run ended with."""
    place.mkdir(exist_ok=True)
    chosen: dict[str, Any] = {"n_atoms": 128, "dead_after_vectors": 2 * BATCH, **parts}
    learner = small_learner(data, **chosen)
    runner = small_trainer(
        place,
        [*others, Report(place)],
        devices=shards * copies,
        strategy=DictionaryParallel(shards, start_method="fork") if shards > 1 else "auto",
        limit_val_batches=1.0,
        val_check_interval=4,
        precision="64-true",  # only hidden states are rounded, in ways that memory decides
    )
    runner.fit(learner, datamodule=data, ckpt_path=start)
    found: Ended = torch.load(place / "ended.pt", weights_only=True)
    return found


def close(found: Ended, expected: Ended, tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=tolerance, atol=tolerance, msg=key)


def test_two_shards_learn_what_one_process_learns(make_data: MakeData, tmp_path: Path) -> None:
    data = make_data(steps=8)
    parts: dict[str, Any] = {"inference": Unrolled(2, selection="exact"), "bias": True}
    alone = ended(data, tmp_path / "one", **parts)
    two = ended(data, tmp_path / "two", shards=2, **parts)
    assert {key.removeprefix("val/") for key in alone} >= HELD_OUT_KEYS
    close(two, alone, 1e-5)


def test_a_checkpoint_of_two_shards_is_that_of_one_process(
    make_data: MakeData, tmp_path: Path
) -> None:
    data = make_data(steps=4)
    parts: dict[str, Any] = {"inference": Unrolled(2, "untied", selection="exact")}
    ended(data, tmp_path / "one", **parts)
    ended(data, tmp_path / "two", shards=2, **parts)
    one, two = (
        torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("one", "two")
    )
    assert one.keys() == two.keys()
    close(two["state_dict"], one["state_dict"], 1e-5)
    found, expected = two["optimizer_states"][0], one["optimizer_states"][0]
    assert found["param_groups"] == expected["param_groups"]
    assert found["state"].keys() == expected["state"].keys()
    for number, state in expected["state"].items():
        assert {name: value.dtype for name, value in state.items()} == {
            name: value.dtype for name, value in found["state"][number].items()
        }
        close(found["state"][number], state, 1e-5)


@pytest.mark.parametrize("way", [(2, 1, 2), (1, 2, 1)], ids=str)
def test_a_run_goes_on_with_another_number_of_shards(
    way: tuple[int, ...], make_data: MakeData, tmp_path: Path
) -> None:
    parts: dict[str, Any] = {"inference": Unrolled(2, "shared", selection="exact"), "bias": True}
    whole = ended(make_data(steps=9), tmp_path / "whole", **parts)
    start = None
    for stop, shards in zip((3, 6, 9), way, strict=True):
        place = tmp_path / str(stop)
        found = ended(make_data(steps=9), place, shards=shards, start=start, **parts)
        start = place / f"{stop}.ckpt"
    close(found, whole, 1e-5)
