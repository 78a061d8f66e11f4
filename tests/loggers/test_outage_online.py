import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl

from dictlearn.loggers import finish_loggers, log_artifact, log_config
from dictlearn.loggers import weights_and_biases as module
from dictlearn.loggers.csv import CsvLogger
from dictlearn.loggers.weights_and_biases import WandbRunLogger
from tests.loggers.fake_wandb import FakeWandb
from tests.loggers.read_offline import read_offline
from tests.loggers.service import kill_service
from tests.loggers.tiny import CONFIG, Tiny, train, trainer, warnings_of
from tests.resume.processes import ROOT

SLOW = pytest.mark.slow
OUTAGES = {
    "silent": FakeWandb.silence,
    "hangs up": FakeWandb.hang_up,
    "gone": FakeWandb.go_away,
}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWandb]:
    with FakeWandb() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", 40 * "a")
        monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
        yield server


def losses(history: list[dict[str, Any]]) -> dict[int, float]:
    """The training loss of every step that has one."""
    rows = [row for row in history if "train/loss" in row]
    return {row["trainer/global_step"]: row["train/loss"] for row in rows}


def test_a_server_that_stays_gets_config_history_artifact_and_exit_code(
    fake: FakeWandb, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(tmp_path, mode="online")
    assert warnings_of(caplog) == []
    assert [path.name[:4] for path in (tmp_path / "wandb").glob("*run-2*")] == ["run-"]
    assert {key: fake.config[key] for key in CONFIG} == CONFIG
    assert list(losses(fake.history)) == [3, 7, 11, 15]
    assert fake.history[-1]["trainer/global_step"] == 16
    assert len(fake.history) == len(read_offline(tmp_path, "run").history)
    assert (fake.artifacts, fake.exit_codes, len(fake.run_ids)) == (1, [0], 1)


class Outage(pl.Callback):
    """Lets something happen after half of the steps, and notes when every step had ended."""

    def __init__(self, happens: Callable[[], None]) -> None:
        self.happens = happens
        self.ends: list[float] = []

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.ends.append(time.monotonic())
        if arguments[-1] == 7:
            self.happens()

    def on_train_end(self, *_: Any) -> None:
        self.ends.append(time.monotonic())


@pytest.mark.parametrize(
    "outage", ["silent", *(pytest.param(name, marks=SLOW) for name in ("hangs up", "gone"))]
)
def test_losing_the_server_in_the_middle_is_one_warning_and_no_step_waits(
    outage: str,
    fake: FakeWandb,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """D2 the server of W&B falls silent, hangs up or goes away in mid-run: no step waits, the end
    is bounded, the local records are whole, and one warning names the command that uploads later.
    """
    monkeypatch.setattr(module, "ANSWER_SECONDS", 2.0)
    logger = WandbRunLogger(tmp_path, mode="online", upload_seconds=2)
    watch = Outage(lambda: OUTAGES[outage](fake))
    job = trainer([CsvLogger(tmp_path), logger], tmp_path)
    job.callbacks.append(watch)  # type: ignore[attr-defined]
    log_config(job.loggers, CONFIG)
    job.fit(Tiny())
    trained = time.monotonic()
    log_artifact(job.loggers, tmp_path, "factors", {})
    finish_loggers(job.loggers)
    assert time.monotonic() - trained < 2 + 2 + 6
    assert job.global_step == 16
    assert max(b - a for a, b in zip(watch.ends, watch.ends[1:], strict=False)) < 3
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 1 + 4 + 2
    run = read_offline(tmp_path, "run")
    assert list(losses(run.history)) == [3, 7, 11, 15]
    assert run.history[-1]["trainer/global_step"] == 16
    assert {key: run.config[key] for key in CONFIG} == CONFIG
    (sentence,) = warnings_of(caplog)
    (folder,) = (tmp_path / "wandb").glob("run-*")
    assert f"`wandb sync --include-online {folder}`" in sentence
    assert f"{fake.url} does not answer" in sentence
    assert "\n" not in sentence
    assert "WARNING" not in capfd.readouterr().err


def sync(place: Path, *words: str) -> None:
    """Run `wandb sync` as a user would later, in a process of its own."""
    command = [sys.executable, "-m", "wandb", "sync", *words]
    environment = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}
    subprocess.run(command, check=True, cwd=place, env=environment, timeout=60)


def lose_the_end(fake: FakeWandb, folder: Path) -> None:
    """Record a run of three steps whose server is silent from the second on, and well again."""
    logger = WandbRunLogger(folder, mode="online", upload_seconds=1)
    for step in range(3):
        logger.log_metrics({"train/loss": step / 2}, step)
        fake.silence()
    finish_loggers([logger])
    fake.recover()


def test_what_was_not_uploaded_is_uploaded_later_by_the_command_of_the_warning(
    fake: FakeWandb, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """D2 the last upload to W&B is not done in time: the command of the warning does it later."""
    lose_the_end(fake, tmp_path)
    (sentence,) = warnings_of(caplog)
    assert "the last upload took more than 1 s" in sentence
    assert losses(fake.history) == {}
    _, command, _ = sentence.split("`")
    assert command.startswith("wandb sync ")
    sync(tmp_path, *shlex.split(command)[2:])
    assert losses(fake.history) == {0: 0, 1: 0.5, 2: 1}
    assert (len(fake.run_ids), fake.exit_codes) == (1, [0])


def test_a_run_is_resumed_under_its_id_although_its_end_was_lost(
    fake: FakeWandb, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """D2 the server of W&B fell silent and the run is resumed later: it goes on under its id."""
    lose_the_end(fake, tmp_path)
    logger = WandbRunLogger(tmp_path, mode="online")
    logger.log_metrics({"train/loss": 2}, 3)
    finish_loggers([logger], failed=True)
    assert len(warnings_of(caplog)) == 1
    assert losses(fake.history) == {3: 2}
    assert (len(fake.run_ids), fake.exit_codes) == (1, [1])


def test_the_pieces_of_a_run_that_was_offline_are_one_run_in_wandb(
    fake: FakeWandb, tmp_path: Path
) -> None:
    for piece in range(2):
        logger = WandbRunLogger(tmp_path, mode="offline")
        for step in range(3):
            logger.log_metrics({"train/loss": step / 2}, 3 * piece + step)
        finish_loggers([logger])
        time.sleep(1.1)  # W&B names them by the second
    folders = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    sync(tmp_path, *map(str, folders[::-1]))
    assert list(losses(fake.history)) == [0, 1, 2, 3, 4, 5]
    assert [row["_step"] for row in fake.history] == [0, 1, 2, 3, 4, 5]
    assert len(fake.run_ids) == 1


PROCESS = """
import sys
from dictlearn.loggers.weights_and_biases import WandbRunLogger
from tests.loggers.service import services

logger = WandbRunLogger(sys.argv[1], mode="online", upload_seconds=1)
logger.log_metrics({"train/loss": 1.0}, 1)
print(*services(), flush=True)
input()
logger.log_metrics({"train/loss": 0.5}, 2)
logger.finish()
"""


@pytest.mark.slow
@pytest.mark.parametrize("outage", ["silent", "killed"])
def test_python_ends_soon_after_an_outage_and_leaves_nothing_running(
    outage: str, fake: FakeWandb, tmp_path: Path
) -> None:
    """D2 the server of W&B falls silent or its service is killed: Python ends with exit code 0,
    in bounded time, and no process of W&B stays.
    """
    command = [sys.executable, "-c", PROCESS, str(tmp_path)]
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as process:
        assert process.stdout is not None
        service = int(process.stdout.readline())
        if outage == "silent":
            fake.silence()
        else:
            os.kill(service, signal.SIGKILL)
        start = time.monotonic()
        _, errors = process.communicate("\n", timeout=60)
    assert time.monotonic() - start < 30
    assert process.returncode == 0
    said = [line for line in errors.splitlines() if "Loaded credentials" not in line]
    assert len(said) == 1, errors
    assert said[0].startswith("W&B has not got all of this run")
    listing = ["ps", "-o", "stat=", "-p", str(service)]
    state = subprocess.run(listing, capture_output=True, text=True).stdout
    assert state[:1] in ("", "Z")  # Z: it has ended, and nobody has asked for its exit code.


def test_the_next_job_is_recorded_although_the_service_died_in_this_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """D2 the service of W&B dies in one of several jobs: the next job is recorded."""
    for job in ("first", "second"):
        logger = WandbRunLogger(tmp_path / job, mode="offline")
        logger.log_metrics({"train/loss": 1}, 1)
        if job == "first":
            kill_service()
        finish_loggers([logger])
    assert len(warnings_of(caplog)) == 1
    assert losses(read_offline(tmp_path / "second").history) == {1: 1}
