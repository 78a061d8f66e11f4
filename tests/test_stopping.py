"""One signal stops a whole sweep: its jobs find a mark, and are not signalled twice."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from dictlearn import stopping
from dictlearn.callbacks.checkpoints import RunCheckpoints
from dictlearn.callbacks.signals import StopSignals
from dictlearn.errors import Stopped
from dictlearn.stopping import (
    SWEEP,
    hear_signals,
    in_sweep,
    is_worker,
    stop_sweep,
    stopped_as_a_whole,
    sweep_signal,
)
from dictlearn.sweep import leave, sweep, sweeps


def test_what_asks_for_a_sweep() -> None:
    assert sweeps(["-m", "seed=1,2"])
    assert sweeps(["seed=1", "--multirun"])
    assert sweeps(["++hydra.mode=MULTIRUN"])
    assert not sweeps(["seed=1", "name=-m", "hydra.mode=RUN"])


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Signals that come to whoever listened before the sweep."""
    numbers: list[int] = []
    before = {n: signal.getsignal(n) for n in stopping.SIGNALS}
    for number in stopping.SIGNALS:
        signal.signal(number, lambda number, _: numbers.append(number))
    monkeypatch.delenv(SWEEP, raising=False)
    yield numbers
    for number, handler in before.items():
        signal.signal(number, handler)


def test_without_workers_a_signal_ends_the_job_and_the_sweep(heard: list[int]) -> None:
    with stopped_as_a_whole():
        assert (in_sweep(), is_worker()) == (True, False)
        folder = Path(os.environ[SWEEP].partition(":")[2])
        with pytest.raises(Stopped, match="stopped by SIGUSR1"):
            os.kill(os.getpid(), signal.SIGUSR1)
        assert sweep_signal() == signal.SIGUSR1
    assert not folder.exists()
    assert not in_sweep()
    assert heard == []


def test_with_workers_the_first_signal_leaves_a_mark(heard: list[int]) -> None:
    """C4 a signal to a sweep in workers: they are told to save, and a second one ends all."""
    with stopped_as_a_whole():
        worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        worker.start()
        with StopSignals() as listening:
            assert listening.received is None
        os.kill(os.getpid(), signal.SIGUSR1)
        assert (sweep_signal(), heard) == (signal.SIGUSR1, [])
        with StopSignals() as listening:
            assert listening.received == signal.SIGUSR1
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM]
        worker.join(10)
        assert worker.exitcode == -signal.SIGKILL


def test_a_job_of_submitit_is_stopped_and_requeued_alone(
    heard: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with stopped_as_a_whole():
        monkeypatch.setenv(stopping.SUBMITTED, "slurm")
        assert (in_sweep(), is_worker(), sweep_signal()) == (False, False, None)
        stop_sweep(signal.SIGUSR1)
        monkeypatch.delenv(stopping.SUBMITTED)
        assert sweep_signal() is None


def test_submitit_asks_slurm_for_the_signal_that_a_run_understands(
    heard: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    script = "from submitit.slurm import slurm; print(slurm._make_sbatch_string('true', 'x'))"
    monkeypatch.setenv("SUBMITIT_PREEMPT_SIGNAL", "USR2")
    with stopped_as_a_whole():
        made = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True)
    asked = re.findall(r"#SBATCH --signal=(\w+)@", made.stdout.decode())
    assert [signal.Signals[f"SIG{name}"] for name in asked] == [signal.SIGUSR1]
    assert os.environ["SUBMITIT_PREEMPT_SIGNAL"] == "USR2"
    monkeypatch.delenv("SUBMITIT_PREEMPT_SIGNAL")
    with stopped_as_a_whole():
        pass
    assert "SUBMITIT_PREEMPT_SIGNAL" not in os.environ


def _worker() -> None:
    assert is_worker()
    hear_signals()
    os.kill(os.getpid(), signal.SIGTERM)
    assert sweep_signal() == signal.SIGTERM
    stop_sweep(signal.SIGUSR1)  # the first one counts
    assert sweep_signal() == signal.SIGTERM
    assert leave(Stopped("")) != 0


def test_a_signal_to_a_worker_stops_the_sweep(
    heard: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """C4 SIGTERM to a worker that has not begun to train: it lives on, and the sweep stops."""

    def launch() -> None:
        worker = multiprocessing.get_context("fork").Process(target=_worker)
        worker.start()
        worker.join()
        assert worker.exitcode == 0

    with pytest.raises(SystemExit) as stop:
        sweep(launch)
    assert stop.value.code == 75
    assert "stopped by SIGTERM; go on with the same command" in capsys.readouterr().err


def test_a_signal_that_comes_when_all_is_done_is_no_news(heard: list[int]) -> None:
    def launch() -> None:
        with StopSignals() as listening:
            os.kill(os.getpid(), signal.SIGTERM)
            while listening.received is None:
                time.sleep(0.001)
        assert sweep_signal() == signal.SIGTERM  # the next job, if any, would not begin

    sweep(launch)


def test_a_sweep_that_fails_by_itself_fails(heard: list[int]) -> None:
    def launch() -> None:
        raise KeyError("ours")

    with pytest.raises(KeyError, match="ours"):
        sweep(launch)


@pytest.mark.parametrize(("ends", "error"), [(True, Stopped), (True, ValueError), (False, Stopped)])
def test_a_process_that_ends_with_its_run_listens_until_then(
    ends: bool, error: type[Exception], heard: list[int], tmp_path: Path
) -> None:
    """C5 a second Ctrl-C while a stopped run is taken apart: no trace of Python's."""
    saver, nothing = RunCheckpoints(tmp_path), cast(Any, None)
    saver.ends_process = ends
    with saver._signals:
        saver.on_exception(nothing, nothing, error(""))
        os.kill(os.getpid(), signal.SIGINT)
        assert heard == ([] if (ends, error) == (True, Stopped) else [signal.SIGINT])
