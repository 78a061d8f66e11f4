"""Vectors per second count training, and neither validation nor saving."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl

from dictlearn.callbacks import checkpoints
from dictlearn.callbacks.checkpoints import RunCheckpoints
from dictlearn.callbacks.random_state import random_states
from dictlearn.callbacks.throughput import PHASES, Throughput
from dictlearn.hidden_states.extraction import Extractor
from tests.small_run import BATCH, small_data, small_learner, small_trainer

PAUSE = 0.08  # seconds of a held-out batch
STEP = 0.06  # and of a training step, at least
SAVE = 0.5  # and of a checkpoint, at least


class Dawdler(pl.Callback):
    """Takes its time in every validation, and a little in every training step."""

    def __init__(self) -> None:
        self.validating = self.training = 0.0
        self.speeds: dict[int, float] = {}

    def on_validation_batch_start(self, *args: Any) -> None:
        time.sleep(PAUSE)
        self.validating += PAUSE

    def on_train_batch_start(self, *args: Any) -> None:
        time.sleep(STEP)
        self.training += STEP

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        if "train/vectors_per_second" in trainer.callback_metrics:
            speed = float(trainer.callback_metrics["train/vectors_per_second"])
            self.speeds[trainer.global_step] = speed


class Clock(pl.Callback):
    """Measures training and, by itself, validation within it."""

    def __init__(self) -> None:
        self.start = self.begun = self.seconds = self.validating = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.start = time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds = time.perf_counter() - self.start

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.begun = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.validating += time.perf_counter() - self.begun


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
        log_every_n_steps=3,
        num_sanity_val_steps=1,
    )
    learner = small_learner(data)
    trainer.fit(learner, datamodule=data)
    before = throughput.seconds
    trainer.validate(learner, datamodule=data, verbose=False)
    assert throughput.seconds == before
    return throughput, dawdler, clock


Measured = tuple[Throughput, Dawdler, Clock]


def test_the_time_of_validation_is_left_out_and_nothing_else(measured: Measured) -> None:
    throughput, dawdler, clock = measured
    assert dawdler.validating == pytest.approx((1 + 2 * 3 + 3) * PAUSE)
    assert clock.validating >= 2 * 3 * PAUSE
    assert throughput.seconds >= dawdler.training == pytest.approx(8 * STEP)
    assert throughput.seconds == pytest.approx(clock.seconds - clock.validating, abs=0.9 * STEP)


def test_the_mean_speed_is_the_vectors_by_the_seconds(measured: Measured) -> None:
    throughput, _, _ = measured
    assert throughput.vectors == 8 * BATCH
    assert throughput.vectors_per_second() == pytest.approx(8 * BATCH / throughput.seconds)


def test_the_logged_speed_is_that_since_the_last_logged_step(measured: Measured) -> None:
    throughput, dawdler, _ = measured
    assert sorted(dawdler.speeds) == list(range(3, 9))
    windows = [dawdler.speeds[step] for step in (3, 6)]
    assert [dawdler.speeds[step] for step in (4, 5, 7, 8)] == [windows[0]] * 2 + [windows[1]] * 2
    seconds = [3 * BATCH / speed for speed in windows]
    assert min(seconds) >= 3 * STEP
    assert sum(seconds) <= throughput.seconds - 2 * STEP


def test_a_run_without_a_step_has_no_speed() -> None:
    assert Throughput().vectors_per_second() == 0


class Figures(pl.Callback):
    """Keeps the figures of every logged step."""

    def __init__(self) -> None:
        self.found: list[dict[str, float]] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        self.found.append({key: float(value) for key, value in trainer.callback_metrics.items()})


@pytest.mark.parametrize("prefetch", [False, True])
def test_shares_tell_where_the_time_goes(
    prefetch: bool,
    minilm_folder: Path,
    text_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    extract = Extractor.extract

    def slow(self: Extractor, numbers: Any) -> Any:
        time.sleep(0.1)
        self.seconds += 0.1
        return extract(self, numbers)

    monkeypatch.setattr(Extractor, "extract", slow)
    options: dict[str, Any] = {"prefetch": prefetch, "lanes": 1, "sequences_per_block": 8}
    data = small_data(minilm_folder, text_folder, tmp_path, steps=12, **options)
    figures = Figures()
    callbacks = [Throughput(), Dawdler(), figures]
    small_trainer(tmp_path, callbacks, log_every_n_steps=6).fit(
        small_learner(data), datamodule=data
    )
    last = figures.found[-1]
    assert sum(last[f"time/{phase}"] for phase in PHASES) == pytest.approx(1.0)
    assert last["time/saving"] == 0
    assert all(last[f"time/{phase}"] > 0 for phase in PHASES)
    assert last["time/extraction"] > 0.2
    overlap = last["time/extraction"] - last["time/waiting"]
    assert overlap > 0.1 if prefetch else overlap < 0.3
    assert last["train/tokens_per_second"] == pytest.approx(last["train/vectors_per_second"] / 2)
    assert 100 < last["memory/peak_mib"] < 100_000


AFTER_VALIDATION = {"val_check_interval": 4, "limit_val_batches": 1}


@pytest.mark.parametrize(
    ("every_steps", "validation", "windows", "saves"),
    [
        pytest.param(3, {}, [1, 3], [0, 1, 0, 1], id="by steps"),
        pytest.param(None, AFTER_VALIDATION, [2, 2], [0, 0, 2, 0], id="around a validation"),
    ],
)
def test_saving_takes_from_no_other_share_and_no_speed(
    every_steps: int | None,
    validation: dict[str, Any],
    windows: list[int],
    saves: list[int],
    minilm_folder: Path,
    text_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def slow(world: int) -> Any:
        time.sleep(SAVE)
        return random_states(world)

    monkeypatch.setattr(checkpoints, "random_states", slow)
    data = small_data(minilm_folder, text_folder, tmp_path, steps=8)
    throughput, figures, said = Throughput(), Figures(), []
    saver = RunCheckpoints(tmp_path, every_steps, every_minutes=None, monitor=None)
    saver.also.append(lambda: said.append(throughput.state_dict()["seconds"]))
    callbacks, often = [saver, throughput, figures], {"log_every_n_steps": 2, **validation}
    small_trainer(tmp_path, callbacks, enable_checkpointing=True, **often).fit(
        small_learner(data), datamodule=data
    )
    logged = figures.found[1::2]
    trained = [2 * BATCH / found["train/vectors_per_second"] for found in logged]
    assert max(trained[1:]) < SAVE  # the first step of a process is slow
    saved = []
    for found, seconds in zip(logged, trained, strict=True):
        shares = [found[f"time/{name}"] for name in (*PHASES, "saving")]
        assert sum(shares) == pytest.approx(1.0)
        assert min(shares[:-1]) > 0
        saved.append(shares[-1] / (1 - shares[-1]) * seconds)
    assert [seconds > 0 for seconds in saved] == [n > 0 for n in saves]
    assert all(n * SAVE <= seconds * 1.001 for n, seconds in zip(saves, saved, strict=True))
    assert sum(saved) <= saver.saving.seconds * 1.001
    until = [sum(trained[:window]) for window in range(5)]
    for window, seconds in zip(windows, said, strict=False):  # so it is saved, too
        assert until[window] * 0.999 <= seconds <= until[window + 1] * 1.001
    assert throughput.seconds == pytest.approx(until[4], abs=SAVE / 2)


def test_saving_is_counted_on_where_a_run_goes_on(
    minilm_folder: Path, text_folder: Path, tmp_path: Path
) -> None:
    data = small_data(minilm_folder, text_folder, tmp_path, steps=4)
    first, saver = Throughput(), RunCheckpoints(tmp_path, 2, every_minutes=None, monitor=None)
    trainer = small_trainer(tmp_path, [saver, first], enable_checkpointing=True)
    trainer.fit(small_learner(data), datamodule=data)
    second, third = Throughput(), Throughput()
    second.load_state_dict(first.state_dict())
    assert second.saved_before == pytest.approx(saver.saving.seconds)
    assert second.saved_before > 0
    third.load_state_dict(second.state_dict())
    assert third.saved_before == second.saved_before
