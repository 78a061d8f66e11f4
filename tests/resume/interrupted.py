"""Runs that are stopped on the way and gone on with, small enough to be repeated many times."""

from __future__ import annotations

import csv
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from dictlearn.callbacks.checkpoints import RunCheckpoints
from dictlearn.callbacks.left_out import LeftOut
from dictlearn.callbacks.revival import DeadAtomRevival
from dictlearn.hidden_states import DataModule
from dictlearn.loggers.csv import CsvLogger
from dictlearn.parallel import DictionaryParallel
from dictlearn.resuming import checkpoint_to_go_on_from
from tests.small_run import BATCH, small_learner, small_trainer

WALL_TIME = ("seconds", "total")
EVERY = 4  # a validation


class Interrupt(pl.Callback):
    """Sends the process a signal at the end of a step, or of a batch of the validation after it."""

    def __init__(self, step: int, in_validation: bool = False, rank: int = 0) -> None:
        self.step, self.in_validation, self.rank = step, in_validation, rank

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if not self.in_validation:
            self._strike(trainer)

    def on_validation_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        if self.in_validation:
            self._strike(trainer)

    def _strike(self, trainer: pl.Trainer) -> None:
        if trainer.global_step != self.step or trainer.global_rank != self.rank:
            return
        (saver,) = (c for c in trainer.callbacks if isinstance(c, RunCheckpoints))  # type: ignore[attr-defined]
        if saver._signals.received is None:
            os.kill(os.getpid(), signal.SIGTERM)
            while saver._signals.received is None:  # so that the step of the stop is known
                time.sleep(0.001)


def go(
    folder: Path,
    data: DataModule,
    interrupt: Interrupt | None = None,
    others: tuple[pl.Callback, ...] = (),
    processes: int = 1,
    shards: int = 1,
    revival: bool = True,
    seed: int = 5,
    every: int = EVERY,
    minutes: float | None = None,
    **parts: Any,
) -> pl.Trainer:
    """Begin or go on with the run in `folder`, as the main job does."""
    pl.seed_everything(seed, verbose=False)
    learner = small_learner(data, n_atoms=128, dead_after_vectors=2 * BATCH, **parts)
    found = checkpoint_to_go_on_from(folder, "auto")
    strategy: Any = "ddp_fork" if processes > 1 else "auto"
    if shards > 1:
        strategy = DictionaryParallel(shards, start_method="fork")
    trainer = small_trainer(
        folder,
        [
            DeadAtomRevival(2 * BATCH, 0.9 * revival, seed=1, duplicate_cosine=0.8),
            LeftOut(),
            RunCheckpoints(folder, every_minutes=minutes),
            *others,
            *([] if interrupt is None else [interrupt]),
        ],
        enable_checkpointing=True,
        logger=CsvLogger(folder),
        limit_val_batches=1.0,
        val_check_interval=every,
        log_every_n_steps=2,
        devices=processes,
        strategy=strategy,
    )
    trainer.fit(learner, datamodule=data, ckpt_path=None if found is None else found.path)
    if processes == 1:
        finish(trainer)
    return trainer


def finish(trainer: pl.Trainer) -> None:
    for callback in trainer.checkpoint_callbacks:
        assert isinstance(callback, RunCheckpoints)
        callback.finish(trainer)


class Finish(pl.Callback):
    """Saves the last state from within the processes that are gone after the fit."""

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        finish(trainer)


def leaves(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, f"{name}.{key}")
    elif isinstance(node, list | tuple):
        for number, value in enumerate(node):
            yield from leaves(value, f"{name}[{number}]")
    else:
        yield name, node


def final_state(folder: Path) -> dict[str, Any]:
    """Everything in the last checkpoint but wall times and Lightning's counter of validations."""
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return {
        name: value
        for name, value in leaves(checkpoint)
        if not name.endswith(WALL_TIME) and "val_loop" not in name and "save_dir" not in name
    }


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    measured = ("second", "time/", "memory/")
    return [
        {key: value for key, value in row.items() if not any(word in key for word in measured)}
        for row in rows
    ]


def kept(folder: Path) -> list[str]:
    """Which checkpoints there are, the best one too."""
    return sorted(path.name for path in (folder / "checkpoints").glob("*.ckpt"))


def assert_same_end(one: Path, other: Path, close: Callable[[Any, Any], bool]) -> None:
    """Compare whole final checkpoints and histories."""
    expected, found = final_state(one), final_state(other)
    assert expected.keys() == found.keys()
    wrong = [name for name, value in expected.items() if not close(value, found[name])]
    assert not wrong, wrong


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    return bool(a == b) or (a != a and b != b)
