"""Vectors per second count training, and not validation."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl

from dictlearn.callbacks.throughput import Throughput
from tests.small_run import BATCH, small_data, small_learner, small_trainer

PAUSE = 0.08


class Dawdler(pl.Callback):
    """Takes its time in every validation, and a little in every training step."""

    def __init__(self) -> None:
        self.validating = self.training = 0.0
        self.speeds: dict[int, float] = {}

    def on_validation_batch_start(self, *args: Any) -> None:
        time.sleep(PAUSE)
        self.validating += PAUSE

    def on_train_batch_start(self, *args: Any) -> None:
        time.sleep(0.02)
        self.training += 0.02

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        if "train/vectors_per_second" in trainer.callback_metrics:
            speed = float(trainer.callback_metrics["train/vectors_per_second"])
            self.speeds[trainer.global_step] = speed


class Clock(pl.Callback):
    """Measures the whole of training, validation included."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.start = time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds = time.perf_counter() - self.start


@pytest.fixture(scope="module")
def measured(
    minilm_folder: Path, text_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Throughput, Dawdler, Clock]:
    """Eight steps with two slow validations, and another validation after training."""
    place = tmp_path_factory.mktemp("throughput")
    data = small_data(minilm_folder, text_folder, place, steps=8)
    throughput, dawdler, clock = Throughput(), Dawdler(), Clock()
    trainer = small_trainer(
        place,
        [throughput, dawdler, clock],
        limit_val_batches=3,
        val_check_interval=4,
        log_every_n_steps=2,
        num_sanity_val_steps=1,
    )
    learner = small_learner(data)
    trainer.fit(learner, datamodule=data)
    before = throughput.seconds
    trainer.validate(learner, datamodule=data, verbose=False)
    assert throughput.seconds == before
    return throughput, dawdler, clock


Measured = tuple[Throughput, Dawdler, Clock]


def test_the_time_of_validation_is_left_out(measured: Measured) -> None:
    throughput, dawdler, clock = measured
    assert dawdler.validating == pytest.approx((1 + 2 * 3 + 3) * PAUSE)
    assert throughput.seconds <= clock.seconds - 2 * 3 * PAUSE


def test_the_time_of_training_is_in(measured: Measured) -> None:
    throughput, dawdler, _ = measured
    assert throughput.seconds >= dawdler.training > 0.1


def test_the_mean_speed_is_the_vectors_by_the_seconds(measured: Measured) -> None:
    throughput, _, _ = measured
    assert throughput.vectors == 8 * BATCH
    assert throughput.vectors_per_second() == pytest.approx(8 * BATCH / throughput.seconds)


def test_the_logged_speed_is_that_since_the_last_logged_step(measured: Measured) -> None:
    throughput, dawdler, _ = measured
    assert sorted(dawdler.speeds) == list(range(2, 9))
    windows = [dawdler.speeds[step] for step in (2, 4, 6, 8)]
    assert [dawdler.speeds[step] for step in (3, 5, 7)] == windows[:3]
    assert all(0 < speed <= 2 * BATCH / (2 * 0.02) for speed in windows)
    # The windows make up the whole run, but for what Lightning does after the last step.
    seconds = sum(2 * BATCH / speed for speed in windows)
    assert 0.5 * throughput.seconds < seconds <= 1.001 * throughput.seconds


def test_a_run_without_a_step_has_no_speed() -> None:
    assert Throughput().vectors_per_second() == 0
