"""Whole runs on a cache: stopped anywhere and gone on with, on one process and on two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from dictlearn.errors import Stopped
from dictlearn.hidden_states import CachedDataModule
from dictlearn.storage.committed import committed
from tests.hidden_states.cache.conftest import cached
from tests.resume.interrupted import (
    Finish,
    Interrupt,
    assert_same_end,
    equal,
    go,
    history,
)
from tests.small_run import BATCH, STEPS


def data(folder: Path, processes: int = 1) -> CachedDataModule:
    """Twelve steps, nearly two epochs of the cache, whatever the number of processes."""
    pl.seed_everything(0, verbose=False)  # as the main job does
    return cached(folder, STEPS * BATCH, batch_size=BATCH // processes, seed=3)


class Seen(pl.Callback):
    """Writes down what every process was given."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        name = f"{trainer.global_step:02}-{trainer.global_rank}.pt"
        torch.save(tuple(batch), self.folder / name)

    def global_batches(self) -> list[list[torch.Tensor]]:
        parts: dict[str, list[Any]] = {}
        for path in sorted(self.folder.glob("??-?.pt")):
            parts.setdefault(path.name[:2], []).append(torch.load(path, weights_only=True))
        return [[torch.cat(columns) for columns in zip(*p, strict=True)] for p in parts.values()]


@pytest.mark.parametrize("step", [1, 4, 7, 11])
def test_a_run_that_was_stopped_ends_bit_by_bit_as_one_that_never_was(
    step: int, cache_folder: Path, straight: Path, tmp_path: Path
) -> None:
    with pytest.raises(Stopped):
        go(tmp_path, data(cache_folder), Interrupt(step))
    assert committed(tmp_path / "checkpoints")[0].step == step
    go(tmp_path, data(cache_folder))
    assert_same_end(straight, tmp_path, equal)
    assert history(straight) == history(tmp_path)


@pytest.fixture(scope="module")
def straight(cache_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("straight")
    go(folder, data(cache_folder))
    return folder


def test_two_processes_see_what_one_sees_and_go_on_as_exactly(
    cache_folder: Path, tmp_path: Path
) -> None:
    places = [tmp_path / name for name in ("one", "two", "stopped")]
    for place in places:
        place.mkdir()
    one, two, stopped = (Seen(place) for place in places)
    go(places[0], data(cache_folder), others=(one,))
    go(places[1], data(cache_folder, 2), others=(two, Finish()), processes=2)
    with pytest.raises(Exception, match="stopped by SIGTERM"):
        go(places[2], data(cache_folder, 2), Interrupt(5), (stopped,), processes=2)
    assert 5 <= len(stopped.global_batches()) <= 7
    go(places[2], data(cache_folder, 2), others=(stopped, Finish()), processes=2)
    assert len(one.global_batches()) == STEPS
    for other in (two, stopped):
        for a, b in zip(one.global_batches(), other.global_batches(), strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert_same_end(places[1], places[2], equal)
