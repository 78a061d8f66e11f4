import http.server
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import wandb

from dictlearn.loggers import finish_loggers, log_artifact
from dictlearn.loggers import weights_and_biases as module
from dictlearn.loggers.csv import CsvLogger
from dictlearn.loggers.weights_and_biases import WandbRunLogger
from tests.loggers.read_offline import read_offline
from tests.loggers.service import kill_service
from tests.loggers.tiny import Tiny, train, trainer, warnings_of
from tests.resume.processes import ROOT


def test_without_login_one_sentence_says_so_and_the_run_is_recorded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """D1 no login for W&B: one warning, recorded offline, the run goes on."""
    start = time.monotonic()
    train(tmp_path)
    assert time.monotonic() - start < 15
    (sentence,) = warnings_of(caplog)
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    assert "`wandb login`" in sentence
    assert f"`wandb sync {folder}`" in sentence
    assert "\n" not in sentence
    assert "wandb" not in "".join(capfd.readouterr())
    assert len(read_offline(tmp_path).history) > 0


@pytest.mark.parametrize("mode", ["auto", "online"])
def test_a_host_that_refuses_means_offline(
    mode: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """D1 the host of W&B refuses: one warning, recorded offline in 10 s."""
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", 40 * "a")
    start = time.monotonic()
    train(tmp_path, mode=mode)
    assert time.monotonic() - start < 10
    (sentence,) = warnings_of(caplog)
    assert "http://127.0.0.1:9 does not answer" in sentence
    assert 40 * "a" not in sentence
    assert read_offline(tmp_path).exit_codes == [0]


def test_a_host_that_accepts_and_keeps_silent_means_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """D1 the host of W&B keeps silent: one warning, recorded offline in bounded time."""
    monkeypatch.setattr(module, "ANSWER_SECONDS", 1.0)
    monkeypatch.setenv("WANDB_API_KEY", 40 * "a")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        train(tmp_path)
    assert time.monotonic() - start < 10
    assert "does not answer" in "".join(warnings_of(caplog))
    assert len(read_offline(tmp_path).history) > 0


class Refusing(http.server.BaseHTTPRequestHandler):
    """A server that is there, but knows nobody."""

    def do_HEAD(self) -> None:
        self.send_error(401)

    def do_POST(self) -> None:
        self.send_error(401)

    def log_message(self, format: str, *args: object) -> None:
        del format, args


@pytest.fixture
def refusing() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_login_that_is_refused_means_offline(
    refusing: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """D1 W&B refuses the login: one warning, recorded offline."""
    monkeypatch.setenv("WANDB_API_KEY", 40 * "a")
    monkeypatch.setenv("WANDB_BASE_URL", refusing)
    train(tmp_path)
    (sentence,) = warnings_of(caplog)
    assert "it could not start (" in sentence
    assert "401" in sentence
    assert "<" not in sentence
    assert "\n" not in sentence
    assert len(read_offline(tmp_path).history) > 0


def test_where_wandb_cannot_start_at_all_the_run_goes_on_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """D1 W&B cannot start at all: one warning, and the run goes on without it."""
    start = wandb.init

    def broken(**options: Any) -> Any:
        if options["mode"] != "disabled":
            raise wandb.Error("its service\n  does not start.")
        return start(**options)

    monkeypatch.setattr(wandb, "init", broken)
    train(tmp_path)
    (sentence,) = warnings_of(caplog)
    assert "(its service does not start)" in sentence


WITHOUT_SERVICE = """
import sys
import wandb.sdk.lib.service.service_process as service
from dictlearn.loggers import weights_and_biases as module

service.get_core_path = lambda: "/bin/false"
module.START_SECONDS = 1.0
logger = module.WandbRunLogger(sys.argv[1])
logger.log_hyperparams({"k": 16})
logger.log_metrics({"train/loss": 1.0}, 1)
logger.finish()
"""


@pytest.mark.slow
def test_a_service_that_cannot_run_keeps_nobody_waiting(tmp_path: Path) -> None:
    """D1 the program of W&B cannot be run: one warning in bounded time, and the run goes on."""
    command = [sys.executable, "-c", WITHOUT_SERVICE, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stderr == (
        f"W&B cannot record this run (its service does not start); {tmp_path} has its history.\n"
    )


class LosesWandb(pl.Callback):
    """Kills W&B's service in the middle of the run."""

    def on_train_batch_end(self, *arguments: Any) -> None:
        if arguments[-1] == 5:
            kill_service()


def test_losing_wandb_in_the_middle_is_one_warning_and_training_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """D2 the service of W&B is killed in mid-run: one warning, the run and its CSV history go
    on.
    """
    logger = WandbRunLogger(tmp_path, mode="offline")
    job = trainer([CsvLogger(tmp_path), logger], tmp_path)
    job.callbacks.append(LosesWandb())  # type: ignore[attr-defined]
    job.fit(Tiny())
    log_artifact([logger], tmp_path, "factors", {})
    finish_loggers([logger])
    assert job.global_step == 16
    assert len(warnings_of(caplog)) == 1
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 1 + 4 + 2
