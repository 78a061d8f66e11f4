"""One signal stops a whole sweep: its workers find a mark, and are not signalled twice."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dictlearn.callbacks.signals import StopSignals
from dictlearn.errors import Stopped
from dictlearn.stopping import (
    FOLDER,
    heard_by_worker,
    is_worker,
    stopped_as_a_whole,
    sweep_is_stopped,
    sweeps,
)


def test_what_asks_for_a_sweep() -> None:
    assert sweeps(["-m", "seed=1,2"])
    assert sweeps(["seed=1", "--multirun"])
    assert not sweeps(["seed=1", "name=-m"])


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Signals that come to whoever listened before the sweep."""
    numbers: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: numbers.append(number))
    monkeypatch.delenv(FOLDER, raising=False)
    yield numbers
    signal.signal(signal.SIGUSR1, before)


def test_without_workers_a_signal_does_what_it_did(heard: list[int]) -> None:
    with stopped_as_a_whole():
        os.kill(os.getpid(), signal.SIGUSR1)
        assert heard == [signal.SIGUSR1]
        assert not sweep_is_stopped()
        folder = Path(os.environ[FOLDER])
    assert not folder.exists()
    assert FOLDER not in os.environ


def test_with_workers_the_first_signal_leaves_a_mark(heard: list[int]) -> None:
    """C4 a signal to a sweep in workers: they are told to save, and a second one ends it."""
    with stopped_as_a_whole():
        worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        worker.start()
        with StopSignals() as listening:
            assert listening.received is None
        os.kill(os.getpid(), signal.SIGUSR1)
        assert (sweep_is_stopped(), heard) == (True, [])
        with StopSignals() as listening:
            assert listening.received == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGUSR1)
        assert heard == [signal.SIGUSR1]
        worker.kill()
        worker.join()


def _worker() -> None:
    assert is_worker()
    with heard_by_worker():
        os.kill(os.getpid(), signal.SIGTERM)
        assert sweep_is_stopped()
    with pytest.raises(Stopped, match="before it had begun"), heard_by_worker():
        pass


def test_a_signal_to_a_worker_that_is_starting_stops_the_sweep(heard: list[int]) -> None:
    """C4 SIGTERM to a worker that has not begun to train: it lives on, and the sweep stops."""
    assert not is_worker()
    with stopped_as_a_whole():
        worker = multiprocessing.get_context("fork").Process(target=_worker)
        worker.start()
        worker.join()
        assert worker.exitcode == 0
        assert sweep_is_stopped()
