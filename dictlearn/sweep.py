"""A sweep and its end: with 75 if it was stopped and something is left to do."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence

from hydra.core.hydra_config import HydraConfig

from dictlearn.errors import Stopped
from dictlearn.launch import TRY_AGAIN, is_main_process, tell
from dictlearn.requeue import requeue
from dictlearn.stopping import (
    in_sweep,
    is_worker,
    leave_undone,
    stopped_as_a_whole,
    sweep_signal,
    undone,
    wants_requeue,
)


def sweeps(arguments: Sequence[str]) -> bool:
    """Tell whether a command line asks Hydra for a sweep."""
    return any(re.match(r"-m$|--m|\+*hydra\.mode=MULTIRUN$", entry) for entry in arguments)


def sweep(launch: Callable[[], object]) -> None:
    """Launch a sweep, and say how to go on if it was stopped before all was done.

    Raises:
        SystemExit: it was.
    """
    with stopped_as_a_whole(lambda: hasattr(sys.modules.get("dictlearn.training"), "train")):
        try:
            launch()
        except BaseException:  # whatever a launcher makes of workers that were stopped
            if sweep_signal() is None:
                raise
            leave_undone("")
        if (number := sweep_signal()) is not None and (place := undone()) is not None:
            with_ = f" and hydra.sweep.dir={place}" if place else ""
            tell(f"the sweep was stopped by {number.name}; go on with the same command{with_}")
            if wants_requeue():
                requeue()
            raise SystemExit(TRY_AGAIN)


def leave(stopped: Stopped) -> float:
    """Leave a run that was stopped, with the code that means so.

    The other processes end with 0: at any other code a launcher would kill the first, which has
    its histories to close. A worker of a sweep lives on: joblib would kill the others at its end.

    Returns:
        What the job of a worker has found, which is nothing.

    Raises:
        SystemExit: this process is no worker.
    """
    if not is_main_process():
        raise SystemExit(0)
    if in_sweep():
        place = HydraConfig.get().sweep.dir if HydraConfig.initialized() else ""
        leave_undone(place, stopped.requeue)
    if is_worker():
        return float("nan")
    raise SystemExit(TRY_AGAIN)
