"""Sweeps: every job of ``-m`` starts processes of its own, and they end with it.

Lightning starts the other ranks with the command line of this process. In a sweep that would be
the whole sweep again, in a directory of its own; and the ranks, the process group and the
environment of one job would be taken for those of the next (Lightning issue 11300).
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import open_dict, read_write

from dictlearn.configuration import config_dir
from dictlearn.errors import InputError
from dictlearn.launch import world

# What Lightning sets for its processes and the next job would take for its own.
VARIABLES = (
    *("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("PL_GLOBAL_SEED", "OMP_NUM_THREADS"),
)
# Keys of Hydra that say how the sweep is run, and nothing of one job.
OF_THE_SWEEP = (
    *("hydra.mode", "hydra.sweep", "hydra.sweeper", "hydra.launcher"),
    *("hydra/sweeper", "hydra/launcher", "hydra.run", "hydra.output_subdir", "hydra.job.name"),
)
LAST_SECONDS = 20.0  # that the other ranks have to end after the main one
OBSERVER = "child-process-observer"


@contextmanager
def own_processes() -> Iterator[None]:
    """Let the job that runs now start ranks of its own, and end them with it; no effect elsewhere.

    Raises:
        InputError: something outside has started several processes of this sweep already.
    """
    hydra: Any = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN:
        yield
        return
    _refuse_several(hydra)
    import torch

    command, threads, main = list(sys.argv), torch.get_num_threads(), sys.modules["__main__"]
    variables = {key: os.environ.get(key) for key in VARIABLES}
    module = main.__spec__
    sys.argv = [*_program(command), *_single_run(hydra)]
    main.__spec__ = None  # a worker of joblib or submitit: its module is not the program
    with read_write(hydra), open_dict(hydra):
        hydra.run.dir = hydra.runtime.output_dir
    try:
        yield
    finally:
        sys.argv, main.__spec__ = command, module
        _end_ranks()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        torch.set_num_threads(threads)
        for key, value in variables.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def _refuse_several(hydra: Any) -> None:
    """Each of several processes would run the whole sweep, or take itself for the main one."""
    tasks = os.environ.get("SUBMITIT_LOCAL_NTASKS", "1")
    if tasks != "1":
        raise InputError(
            f"hydra/launcher=submitit_local starts {tasks} tasks that do not know of each other: "
            f"give hydra.launcher.tasks_per_node=1, and trainer.devices={tasks} starts them."
        )
    outer = world()
    submitted = "submitit" in str(hydra.launcher.get("_target_"))
    if outer is not None and outer.processes > 1 and not submitted:
        raise InputError(
            f"{outer.launcher} started {outer.processes} processes, each of which would run the "
            "whole sweep: start it once, as python train.py -m ...; every job starts its own."
        )


def _program(command: list[str]) -> list[str]:
    return command[:2] if command[1:2] == ["train"] else command[:1]


def _single_run(hydra: Any) -> list[str]:
    """Return the arguments that make a single run of this job."""
    flags = [f"--config-name={hydra.job.config_name}"]
    for source in hydra.runtime.config_sources:
        if source.provider == "main" and source.path != config_dir():
            flags.append(f"--config-path={source.path}")
        elif source.provider == "command-line":
            flags.append(f"--config-dir={source.path}")
    kept = [entry for entry in hydra.overrides.hydra if not _of_the_sweep(entry)]
    return [*flags, *hydra.overrides.task, *kept, "hydra.mode=RUN"]


def _of_the_sweep(override: str) -> bool:
    key = override.lstrip("+~").partition("=")[0]
    return any(key == name or key.startswith(f"{name}.") for name in OF_THE_SWEEP)


def _end_ranks() -> None:
    """Wait for the ranks of the job that ended, and stop those that hang on a failed one.

    Lightning watches them in a thread that ends this whole process, five seconds after one of
    them failed; by then the next job would run in it. Without processes the watch ends by itself.
    """
    for thread in threading.enumerate():
        ranks: list[subprocess.Popen[bytes]] = getattr(thread, "_child_processes", [])
        if thread.name == OBSERVER and ranks:
            ended = list(ranks)
            ranks.clear()
            for rank in ended:
                _end(rank)


def _end(rank: subprocess.Popen[bytes]) -> None:
    for ask in (rank.terminate, rank.kill):
        try:
            rank.wait(LAST_SECONDS)
        except subprocess.TimeoutExpired:
            ask()
    rank.wait()
