"""A sweep is stopped as a whole: whoever hears a signal leaves a mark, and all jobs look for it.

joblib would kill the workers of a sweep that ends, and one job that stops would be followed by the
next. A signal may reach the sweep, a worker or all of their processes; so it is not handed on,
where it would be a second one.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from dictlearn.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
SUBMITTED = "SUBMITIT_EXECUTOR"
SWEEP = "DICTLEARN_SWEEP"  # its process and its folder of marks, for all that it starts
# Which signal submitit asks SLURM to announce the end of a job by. By its own, SIGUSR2, it would
# end a run in the middle of a step, saving nothing, and after a full length not even requeue it.
ANNOUNCED = {"SUBMITIT_PREEMPT_SIGNAL": "USR1"}


def in_sweep() -> bool:
    """Tell whether this process is a sweep, or works for one; jobs of submitit are on their own."""
    return SWEEP in os.environ and SUBMITTED not in os.environ


def is_worker() -> bool:
    """Tell whether this process was started by a sweep."""
    return in_sweep() and os.environ[SWEEP].partition(":")[0] != str(os.getpid())


def sweep_signal() -> signal.Signals | None:
    """Return the signal that stops the sweep to which this process belongs, if there is any."""
    if in_sweep():
        with suppress(OSError, ValueError):
            return signal.Signals(int(_mark("signal").read_text()))
    return None


def stop_sweep(number: int) -> None:
    """Let a signal stop the sweep to which this process belongs, if any."""
    if in_sweep() and sweep_signal() is None:
        with suppress(OSError):
            _mark("signal").write_text(str(int(number)))


def leave_undone(place: str, requeue: bool = False) -> None:
    """Note that a job of the sweep was stopped or not begun, and whether it wants its queue.

    Args:
        place: the folder of the sweep, as far as it is known.
        requeue: whether a scheduler is to be asked to start the sweep again.
    """
    with suppress(OSError):
        if place or not _mark("undone").exists():
            _mark("undone").write_text(place)
        if requeue:
            _mark("requeue").touch()


def undone() -> str | None:
    """Return the folder of the sweep if something in it was left undone, else None."""
    with suppress(OSError):
        return _mark("undone").read_text()
    return None


def wants_requeue() -> bool:
    """Tell whether a job that was stopped wants to be put back into the queue."""
    return _mark("requeue").exists()


def hear_signals() -> None:
    """Let signals stop the sweep that started this process, from now on; elsewhere do nothing."""
    if is_worker() and threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, lambda number, _: stop_sweep(number))


@contextmanager
def stopped_as_a_whole(imported: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Be a sweep: the first stop signal asks its jobs to stop, the second ends all at once.

    Args:
        imported: whether a job has imported what it needs; torch does not stand it to be stopped
            in the middle of that.

    Raises:
        Stopped: by the first signal, while no worker is at work.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    folder = Path(tempfile.mkdtemp(prefix="dictlearn-sweep-"))
    before: dict[int, Any] = {}

    def ask(number: int, frame: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, end)
        stop_sweep(number)
        if imported() and not multiprocessing.active_children():
            raise Stopped(f"stopped by {signal.Signals(number).name}")

    def end(number: int, frame: FrameType | None) -> None:
        for worker in multiprocessing.active_children():
            worker.kill()
        shutil.rmtree(folder, ignore_errors=True)
        signal.signal(number, before[number])
        signal.raise_signal(number)

    variables = {key: os.environ.get(key) for key in (SWEEP, *ANNOUNCED)}
    os.environ.update({SWEEP: f"{os.getpid()}:{folder}", **ANNOUNCED})
    before.update({number: signal.signal(number, ask) for number in SIGNALS})
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for key, value in variables.items():
            os.environ.pop(key, None)
            if value is not None:
                os.environ[key] = value
        shutil.rmtree(folder, ignore_errors=True)


def _mark(name: str) -> Path:
    return Path(os.environ[SWEEP].partition(":")[2]) / name
