"""A sweep with its jobs in workers is stopped as a whole: who is asked to stop tells the workers.

joblib would kill them. A signal may reach the sweep alone or all of its processes; so it is not
handed on, where it would be a second one, but leaves a file that the jobs look for.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from dictlearn.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
FOLDER = "DICTLEARN_SWEEP"


def sweeps(arguments: Sequence[str]) -> bool:
    """Tell whether a command line asks Hydra for a sweep."""
    return any(entry in ("-m", "--multirun", "hydra.mode=MULTIRUN") for entry in arguments)


def is_worker() -> bool:
    """Tell whether this process works on jobs of a sweep that another one has begun."""
    return FOLDER in os.environ and multiprocessing.parent_process() is not None


def sweep_is_stopped() -> bool:
    """Tell whether the sweep that this job belongs to, if any, was asked to stop."""
    return FOLDER in os.environ and _mark().exists()


@contextmanager
def heard_by_worker() -> Iterator[None]:
    """Let a signal that comes to a worker while nothing else listens stop the sweep, not end it.

    Raises:
        Stopped: the sweep was asked to stop before this job had begun.
    """
    if not is_worker() or threading.current_thread() is not threading.main_thread():
        yield
        return
    if sweep_is_stopped():
        raise Stopped("stopped before it had begun")
    before = {number: signal.signal(number, lambda *_: _mark().touch()) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _mark() -> Path:
    return Path(os.environ[FOLDER]) / "stopped"


@contextmanager
def stopped_as_a_whole() -> Iterator[None]:
    """Let the first stop signal to this process ask the workers that it has; without any, and at
    the second one, it does what it did before.
    """  # noqa: D205
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    folder = Path(tempfile.mkdtemp(prefix="dictlearn-sweep-"))
    before: dict[int, Any] = {}

    def ask(number: int, frame: FrameType | None) -> None:
        signal.signal(number, before[number])
        if multiprocessing.active_children():
            _mark().touch()
        else:
            signal.raise_signal(number)

    os.environ[FOLDER] = str(folder)
    before.update({number: signal.signal(number, ask) for number in SIGNALS})
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        del os.environ[FOLDER]
        shutil.rmtree(folder, ignore_errors=True)
