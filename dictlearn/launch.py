"""Who launched this process: its rank, the processes it belongs to, and their one run directory.

Reads the environment that launchers set (Lightning's own, torchrun, SLURM); imports nothing heavy.
"""

from __future__ import annotations

import atexit
import fcntl
import itertools
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from dictlearn.errors import InputError

TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h
STAMP = "%Y-%m-%d_%H-%M-%S"
LONGEST_NAME = 255  # bytes of one part of a path
ELASTIC_ID = "TORCHELASTIC_RUN_ID"
RANKS = ("LOCAL_RANK", "RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
INTERACTIVE = ("bash", "interactive")  # SLURM's names for jobs that are shells


class World(NamedTuple):
    """The processes that a launcher outside this program has started."""

    launcher: str
    processes: int
    nodes: int


def is_main_process() -> bool:
    """Tell whether this process is rank 0, from what launchers put into the environment."""
    if ELASTIC_ID in os.environ:
        # Around torchrun there may be SLURM, whose first node need not be torchrun's.
        return _count("RANK", 0) == 0
    return not any(_count(key, 0) for key in RANKS)


def tell(sentence: str) -> None:
    """Say something on the standard error, once for all processes."""
    if is_main_process():
        say(sentence)


def say(sentence: str) -> None:
    """Say something on the standard error, in one piece: other processes may write there, too."""
    sys.stderr.write(f"dictlearn: {sentence}\n")


def world() -> World | None:
    """Return the world that torchrun or SLURM made; None where this program starts processes.

    A single task of SLURM is such a place: it may have all GPUs of its node.
    """
    if ELASTIC_ID in os.environ:
        return World("torchrun", _count("WORLD_SIZE", 1), _count("GROUP_WORLD_SIZE", 1))
    tasks = _count("SLURM_NTASKS", 1)
    if tasks == 1 or os.environ.get("SLURM_JOB_NAME") in INTERACTIVE:
        return None
    return World("SLURM", tasks, _count("SLURM_NNODES", 1))


def has_checkpoint(run_dir: Path) -> bool:
    """Tell whether there is anything to go on from in a run directory."""
    return any(run_dir.glob("checkpoints/*.ckpt"))


def launched(what: str, otherwise: object) -> object:
    """Return how many ``devices`` (processes of a node) or ``nodes`` a launcher started.

    Args:
        what: ``devices`` or ``nodes``.
        otherwise: the value where no launcher started this process.
    """
    outer = world()
    if outer is None:
        return otherwise
    return outer.nodes if what == "nodes" else outer.processes // outer.nodes


def run_directory(root: str, name: object) -> str:
    """Return ``root/name/ID``: the same for all processes of a launch, and new for every launch.

    ID is `launch_id`, otherwise the time; of launches in the same second each gets its own. A
    process that cannot know what the main one chose gets a folder that goes away with it.

    Raises:
        InputError: the name leads out of `root`, or the directory cannot be made.
    """
    folder = _inside(root, name)
    shared = launch_id()
    if shared is not None:
        return str(folder / shared)
    if not is_main_process():
        return _passing_folder()
    try:
        return str(_claimed(folder, time.strftime(STAMP)))
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({error.strerror}): "
            "choose another name=NAME or hydra.run.dir=DIR."
        ) from None


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold a run directory, so that no other launch writes into it; the system lets go for us.

    On disks that cannot lock a folder (some network ones) nothing is held.

    Raises:
        InputError: another process holds it.
    """
    if not is_main_process():
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise InputError(
            f"Another process is writing to {folder}: give another name=NAME or hydra.run.dir=DIR."
        ) from None
    except OSError:
        pass
    try:
        yield
    finally:
        os.close(handle)


def launch_id() -> str | None:
    """Return what all processes of this launch call it, also after a requeue or a restart.

    None where nothing is shared: a plain launch, or torchrun over several nodes without an id.
    """
    return _slurm_id() or _elastic_id()


def advice(num_nodes: int, overrides: Sequence[str]) -> str | None:
    """Return what a person should know of this launch, in one sentence, or None.

    Args:
        num_nodes: over which the run is spread.
        overrides: of Hydra's own keys, from the command line.
    """
    named = any(entry.startswith("hydra.run.dir=") for entry in overrides)
    if num_nodes == 1 or named or launch_id() is not None or not is_main_process():
        return None
    return (
        "Only the first node knows the run directory, and a restart would begin a new one: "
        "torchrun --rdzv-id=ID or hydra.run.dir=DIR on a shared disk makes it one for all."
    )


def _slurm_id() -> str | None:
    """Name the job, except in a shell on a node: there every command is a launch of its own."""
    job = os.environ.get("SLURM_JOB_ID")
    if not job:
        return None
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        array = os.environ.get("SLURM_ARRAY_JOB_ID", job)
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    # sbatch alone sets ENVIRONMENT to BATCH (slurm/src/common/env.c), and only its jobs come back.
    if os.environ.get("ENVIRONMENT") == "BATCH" or _count("SLURM_RESTART_COUNT", 0):
        return _part(f"slurm-{job}")
    step = os.environ.get("SLURM_STEP_ID")
    shell = "SLURM_PTY_PORT" in os.environ and _count("SLURM_STEP_NUM_TASKS", 1) == 1
    return None if step is None or shell else _part(f"slurm-{job}.{step}")


def _elastic_id() -> str | None:
    """Name the rendezvous, or on one node without a name the time at which torchrun started."""
    run = os.environ.get(ELASTIC_ID)
    if run is None:
        return None
    if run != "none":
        uuid = re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", run)
        return _part(f"elastic-{run[:8] if uuid else run}")
    return _agent_id() if _count("GROUP_WORLD_SIZE", 1) == 1 else None


def _agent_id() -> str:
    """Name torchrun's own process by its start: it starts all ranks, and starts them again."""
    pid = os.getppid()
    try:
        # A wrapper (numactl, a shell) may stand between: the agent alone was not told the id.
        while f"{ELASTIC_ID}=".encode() in Path(f"/proc/{pid}/environ").read_bytes():
            pid = int(_stat(pid)[1])
        boot = re.search(r"^btime (\d+)$", Path("/proc/stat").read_text(), flags=re.MULTILINE)
        ticks = int(_stat(pid)[19]) / os.sysconf("SC_CLK_TCK")
        start = ticks + int(boot[1] if boot else 0)
    except OSError:  # no /proc on this system
        return f"elastic-{os.getppid()}"
    return f"{time.strftime(STAMP, time.localtime(start))}_{pid}"


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat that follow the name of the command: state, parent..."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _inside(root: str, name: object) -> Path:
    """Return ``root/name``; what `root` is a link to does not matter, where `name` leads does."""
    text = "" if name is None else str(name)
    path = Path(os.path.normpath(Path(root) / text))
    top = Path(os.path.normpath(root))
    if "\0" in text or path == top or not path.is_relative_to(top):
        raise InputError(
            f"name={text!r} is no folder inside {root}: choose a name without '..' and leading '/'."
        )
    if any(len(part.encode()) > LONGEST_NAME for part in path.parts):
        raise InputError(f"name={text[:20]}... is too long for a folder: choose a shorter name.")
    return path


def _claimed(folder: Path, stamp: str) -> Path:
    """Make ``folder/stamp``, or the first of ``stamp_1``, ... that nobody else has made."""
    for number in itertools.count():
        path = folder / (f"{stamp}_{number}" if number else stamp)
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            if folder.is_dir():
                continue
            raise
        return path
    raise AssertionError("unreachable")


def _passing_folder() -> str:
    folder = tempfile.mkdtemp(prefix="dictlearn-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _part(text: str) -> str:
    """Make one part of a path of an id that a person may have chosen."""
    return re.sub(r"[^\w.-]+", "-", text)[:100]


def _count(key: str, otherwise: int) -> int:
    """Return a count from the environment; what is no number is as good as absent."""
    value = os.environ.get(key, "")
    return int(value) if value.isascii() and value.isdigit() else otherwise
