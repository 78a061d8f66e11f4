import csv
import os
import signal
import warnings
from pathlib import Path

import pytest
import torch
from pytorch_lightning.utilities import rank_zero_only

from dictlearn.loggers import finish_loggers, log_config
from dictlearn.loggers.csv import CsvHistory, CsvLogger
from tests.loggers.tiny import Tiny, trainer


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def header(folder: Path) -> list[str]:
    return (folder / "metrics.csv").read_text().splitlines()[0].split(",")


def test_a_run_leaves_metrics_csv_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "run.log").write_text("a run directory is never empty")
    job = trainer([CsvLogger(tmp_path)], tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not empty.*")
        log_config(job.loggers, {"seed": 0})
        job.fit(Tiny())
        finish_loggers(job.loggers)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.csv", "run.log"]
    assert header(tmp_path)[0] == "step"
    table = rows(tmp_path)
    assert [row["step"] for row in table if row["train/loss"]] == ["3", "7", "11", "15"]
    assert [row["step"] for row in table if row["val/fvu"]] == ["7", "15"]
    assert all(float(row["val/fvu"]) >= 0 for row in table if row["val/fvu"])


def test_every_row_is_on_the_disk_at_once(tmp_path: Path) -> None:
    """D3 a run is killed after a row of the history: the row is on the disk."""
    logger = CsvLogger(tmp_path)
    for step in range(3):
        logger.log_metrics({"train/loss": torch.tensor(0.5)}, step)
        assert [row["step"] for row in rows(tmp_path)] == [str(s) for s in range(step + 1)]
    assert rows(tmp_path)[0]["train/loss"] == "0.5"


def test_new_columns_are_empty_in_earlier_rows_and_old_ones_in_later_rows(tmp_path: Path) -> None:
    logger = CsvLogger(tmp_path)
    logger.log_metrics({"train/loss": 2.0}, 1)
    logger.log_metrics({"val/fvu": 0.1, "a": 7}, 2)
    assert header(tmp_path) == ["step", "train/loss", "val/fvu", "a"]
    assert rows(tmp_path) == [
        {"step": "1", "train/loss": "2.0", "val/fvu": "", "a": ""},
        {"step": "2", "train/loss": "", "val/fvu": "0.1", "a": "7"},
    ]


def test_a_resumed_run_appends(tmp_path: Path) -> None:
    CsvLogger(tmp_path).log_metrics({"train/loss": 2.0}, 1)
    resumed = CsvLogger(tmp_path)
    resumed.log_metrics({"train/loss": 1.0}, 2)
    resumed.log_metrics({"val/fvu": 0.5}, 3)
    assert [(row["step"], row["train/loss"], row["val/fvu"]) for row in rows(tmp_path)] == [
        ("1", "2.0", ""),
        ("2", "1.0", ""),
        ("3", "", "0.5"),
    ]


@pytest.mark.parametrize("torn", ["2,0.12", "2"])
def test_the_torn_last_row_of_a_killed_run_is_dropped(torn: str, tmp_path: Path) -> None:
    """D3 a run is killed within a row of the history: half a row is dropped, no wrong number
    stays.
    """
    (tmp_path / "metrics.csv").write_text("step,train/loss\n1,2.0\n" + torn)
    CsvLogger(tmp_path).log_metrics({"train/loss": 1.0}, 2)
    assert (tmp_path / "metrics.csv").read_text() == "step,train/loss\n1,2.0\n2,1.0\n"


def test_an_empty_file_is_a_new_table(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").touch()
    CsvLogger(tmp_path).log_metrics({"train/loss": 1.0}, 2)
    assert rows(tmp_path) == [{"step": "2", "train/loss": "1.0"}]


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    CsvLogger(tmp_path).log_metrics({"train/loss": 1.0}, 2)
    assert list(tmp_path.iterdir()) == []


def _log_without_end(folder: Path, ready: int) -> None:
    logger = CsvLogger(folder)
    for step in range(100_000):
        logger.log_metrics({"a": step / 7, "b": step} if step > 3 else {"a": 0.5}, step)
        os.write(ready, b".")


@pytest.mark.parametrize("rows", [1, 5, 200])
def test_a_killed_process_leaves_every_row_that_it_had_logged(rows: int, tmp_path: Path) -> None:
    """D3 kill -9 in the middle of logging: the history holds every row up to the last one."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _log_without_end(tmp_path, write)
        finally:
            os._exit(1)
    logged = 0
    while logged < rows:
        logged += len(os.read(read, 1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(write)
    while more := len(os.read(read, 4096)):
        logged += more
    os.close(read)
    history = CsvHistory(tmp_path / "metrics.csv")
    assert len(history) in (logged, logged + 1)  # the last may be written and not yet counted
    with history.path.open() as file:
        table = list(csv.DictReader(file))
    assert [int(row["step"]) for row in table] == list(range(len(history)))


def test_rows_wait_for_room_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A3 the disk is full: one warning, the run goes on, and its rows are written once there is
    room again.
    """
    logger = CsvLogger(tmp_path)
    logger.log_metrics({"a": 1.0}, step=1)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as change:
        change.setattr(Path, "open", full)
        logger.log_metrics({"a": 2.0}, step=2)
        change.setattr("dictlearn.loggers.csv.write_text", full)
        logger.log_metrics({"a": 3.0, "b": 1.0}, step=3)
    assert logger.n_rows == 3
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("2,2.")  # as far as there was room
    logger.finalize("success")
    assert (tmp_path / "metrics.csv").read_text().splitlines() == [
        "step,a,b",
        "1,1.0,",
        "2,2.0,",
        "3,3.0,1.0",
    ]
    assert [r.getMessage().count("No space left") for r in caplog.records] == [1]
