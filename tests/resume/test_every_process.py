"""What every process has of its own, a generator and a clock: saved by rank, agreed upon."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from dictlearn.callbacks.checkpoints import RunCheckpoints
from dictlearn.hidden_states import HiddenStateDataModule
from tests.resume.interrupted import Interrupt, go
from tests.small_run import STEPS

MakeData = Callable[..., HiddenStateDataModule]


class Drawing(pl.Callback):
    """A user's own callback that draws from the global generators, on every process more often.

    What it drew is kept in a file of each process.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        import random

        import numpy as np

        drawn = [
            float(torch.rand(())) + random.random() + float(np.random.rand())
            for _ in range(1 + trainer.global_rank)
        ]
        with (self.folder / str(trainer.global_rank)).open("a") as file:
            file.write(f"{trainer.global_step}: {drawn[-1]}\n")


@pytest.mark.parametrize("processes", [1, 2])
def test_global_random_generators_go_on_too(
    processes: int, make_shared: MakeData, tmp_path: Path
) -> None:
    """C4 a callback draws from the generators of torch, numpy and Python, on every process other
    numbers: a run that was stopped draws on as one that never stopped, on every process.
    """
    draws = [Drawing(tmp_path / name) for name in ("draws", "draws again")]
    go(tmp_path / "straight", make_shared(processes), others=(draws[0],), processes=processes)
    stopped = tmp_path / "stopped", make_shared(processes)
    with pytest.raises(Exception, match="stopped by SIGTERM after step"):
        go(*stopped, Interrupt(6), others=(draws[1],), processes=processes)
    go(*stopped, others=(draws[1],), processes=processes, seed=99)
    expected, found = (
        [(draw.folder / str(rank)).read_text() for rank in range(processes)] for draw in draws
    )
    assert found == expected
    assert len(set(expected)) == processes
    assert all(lines.count("\n") == STEPS for lines in expected)


class Slow(pl.Callback):
    """Needs long for one step on one process, or has a clock that says so; notes what is saved.

    Args:
        folder: the steps that were saved are kept in a file of each process here.
        rank: the process.
        seconds: that it really needs.
        on_its_clock: that it seems to need.
    """

    def __init__(self, folder: Path, rank: int, seconds: float, on_its_clock: float) -> None:
        self.folder, self.rank = folder, rank
        self.seconds, self.on_its_clock = seconds, on_its_clock

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        path = self.folder / f"saved-{trainer.global_rank}"

        def note() -> None:
            with path.open("a") as file:
                file.write(f"{trainer.global_step} ")

        saver(trainer).also.append(note)

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if (trainer.global_step, trainer.global_rank) == (5, self.rank):
            time.sleep(self.seconds)
            saver(trainer)._saved_at -= self.on_its_clock


def saver(trainer: pl.Trainer) -> RunCheckpoints:
    (found,) = trainer.checkpoint_callbacks
    assert isinstance(found, RunCheckpoints)
    return found


@pytest.mark.parametrize(
    ("minutes", "slow", "expected"), [(0.02, (1.3, 0), [5]), (10, (0, 500), [])]
)
def test_it_is_saved_every_so_many_minutes(
    minutes: float,
    slow: tuple[float, float],
    expected: list[int],
    make_shared: MakeData,
    tmp_path: Path,
) -> None:
    """C1 the minutes of callbacks.checkpoint.every_minutes are over: it is saved, and not before,
    so that a kill costs no more.
    """
    watch = Slow(tmp_path, 0, *slow)
    go(tmp_path / "run", make_shared(1), others=(watch,), every=STEPS, minutes=minutes)
    steps = saved(tmp_path, 0)
    assert steps[-1] == STEPS
    assert [step for step in steps if step == 5 or (step < STEPS and not expected)] == expected


@pytest.mark.parametrize("rank", [0, 1])
def test_the_minutes_of_one_process_are_those_of_all(
    rank: int, make_shared: MakeData, tmp_path: Path
) -> None:
    """C1 the minutes of callbacks.checkpoint.every_minutes are over on the clock of one process:
    all save at one step, and once.
    """
    watch = Slow(tmp_path, rank, 0, 601)
    two: dict[str, Any] = {"processes": 2, "every": STEPS, "minutes": 10}
    go(tmp_path / "run", make_shared(2), others=(watch,), **two)
    for each in range(2):
        assert [step for step in saved(tmp_path, each) if step < STEPS] == [6]


def saved(folder: Path, rank: int) -> list[int]:
    return [int(step) for step in (folder / f"saved-{rank}").read_text().split()]
