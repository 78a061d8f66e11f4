"""What a person sees: the bar's figures, and a line in the log at every validation."""

from __future__ import annotations

import io
import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import pytorch_lightning as pl
import torch
from rich.console import Console

from dictlearn.callbacks import progress
from dictlearn.callbacks.progress import FactorProgressBar, ValidationLines
from dictlearn.callbacks.throughput import Throughput
from dictlearn.hidden_states import HiddenStateDataModule
from dictlearn.learner import DictionaryLearner
from tests.small_run import small_data, small_learner, small_trainer


@pytest.fixture(scope="module")
def data(
    minilm_folder: Path, text_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> HiddenStateDataModule:
    place = tmp_path_factory.mktemp("progress")
    return small_data(minilm_folder, text_folder, place, steps=6)


def fit(
    data: HiddenStateDataModule, place: Path, *callbacks: pl.Callback, **arguments: object
) -> tuple[pl.Trainer, DictionaryLearner]:
    learner = small_learner(data, dead_after_vectors=1)
    trainer = small_trainer(place, callbacks, **arguments)
    trainer.fit(learner, datamodule=data)
    return trainer, learner


def test_the_bar_shows_the_newest_training_figures_formatted(
    data: HiddenStateDataModule, tmp_path: Path
) -> None:
    trainer, learner = fit(data, tmp_path, Throughput())
    figures = {key: float(value) for key, value in trainer.callback_metrics.items()}
    shown = FactorProgressBar().get_metrics(trainer, learner)
    assert shown == {
        "FVU": f"{figures['train/fvu']:.3f}",
        "L0": f"{figures['train/l0']:.1f}",
        "dead": f"{100 * figures['train/dead_fraction']:.1f}%",
        "vectors/s": f"{round(figures['train/vectors_per_second']):,}",
    }


def test_the_bar_writes_numbers_as_a_person_reads_them(
    data: HiddenStateDataModule, tmp_path: Path
) -> None:
    trainer, learner = small_trainer(tmp_path), small_learner(data)
    assert FactorProgressBar().get_metrics(trainer, learner) == {}
    figures = {"fvu": 0.12345, "l0": 7.96, "dead_fraction": 0.0625, "vectors_per_second": 12345.6}
    logged = {f"train/{key}": torch.tensor(value) for key, value in figures.items()}
    trainer.callback_metrics.update({**logged, "val/fvu": torch.tensor(0.5)})
    assert FactorProgressBar().get_metrics(trainer, learner) == {
        "FVU": "0.123",
        "L0": "8.0",
        "dead": "6.2%",
        "vectors/s": "12,346",
    }


class Logged(dict[str, torch.Tensor]):
    """Figures that count how often they are looked at: each look waits for a GPU."""

    looks = 0

    def __getitem__(self, key: str) -> torch.Tensor:
        self.looks += 1
        return super().__getitem__(key)


def test_the_bar_reads_figures_when_there_are_new_ones(data: HiddenStateDataModule) -> None:
    logged, learner, bar = Logged(), small_learner(data), FactorProgressBar()
    shown, looks = {}, {}
    for step in range(1, 10):
        if step % 4 == 0:
            logged["train/l0"] = torch.tensor(float(step))
        trainer = SimpleNamespace(log_every_n_steps=4, global_step=step, callback_metrics=logged)
        before = logged.looks
        shown[step] = bar.get_metrics(cast("pl.Trainer", trainer), learner).get("L0")
        looks[step] = logged.looks - before
    assert [shown[step] for step in (3, 4, 7, 8, 9)] == [None, "4.0", "4.0", "8.0", "8.0"]
    assert looks[6] == looks[7] == 0


def test_the_bar_on_the_screen_holds_the_figures(
    data: HiddenStateDataModule, tmp_path: Path
) -> None:
    bar = FactorProgressBar()
    screen = io.StringIO()
    bar._console_kwargs = {"file": screen, "force_terminal": True, "width": 200}
    trainer, learner = fit(data, tmp_path, bar, Throughput(), enable_progress_bar=True)
    printed = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert isinstance(bar._console, Console)
    last = bar.get_metrics(trainer, learner)
    for name in ("FVU", "L0", "dead", "vectors/s"):
        assert re.search(rf"{re.escape(name)}:\s+{re.escape(str(last[name]))}", printed), name
    assert "6/6" in printed


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == progress.log.name]


def test_every_validation_leaves_one_line_with_its_figures(
    data: HiddenStateDataModule, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger=progress.log.name):
        trainer, _ = fit(
            data,
            tmp_path,
            ValidationLines(),
            limit_val_batches=1.0,
            val_check_interval=3,
            num_sanity_val_steps=1,
        )
    found = lines(caplog)
    assert [re.match(r"step (\d+) of 6: ", line)[1] for line in found] == ["3", "6"]  # type: ignore[index]
    figures = {key: float(value) for key, value in trainer.callback_metrics.items()}
    assert found[-1] == (
        f"step 6 of 6: held-out FVU {figures['val/fvu']:.4f}, L0 {figures['val/l0']:.1f}, "
        f"cosine {figures['val/cosine']:.3f}, dead {100 * figures['val/dead_fraction']:.1f} %"
    )


def test_without_validation_there_is_no_line(
    data: HiddenStateDataModule, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger=progress.log.name):
        fit(data, tmp_path, ValidationLines())
    assert lines(caplog) == []


def test_a_validation_of_its_own_is_told_too(
    data: HiddenStateDataModule, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = small_trainer(tmp_path, [ValidationLines()], limit_val_batches=1.0)
    with caplog.at_level(logging.INFO, logger=progress.log.name):
        trainer.validate(small_learner(data), datamodule=data, verbose=False)
    (line,) = lines(caplog)
    assert line.startswith("step 0 of ")
