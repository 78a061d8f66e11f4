"""The smallest real run, and what every launcher must leave of it: one of everything."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors.numpy import load_file

import dictlearn
from tests.fake_slurm import wait_until

ROOT = Path(dictlearn.__file__).parent.parent
TRAIN = str(ROOT / "train.py")
VECTORS = 4096


def tiny(texts: Path, *others: str) -> list[str]:
    """Return the overrides of a run of 8 steps of all processes together."""
    return [
        f"max_vectors={VECTORS}",
        "hidden_states.batch_size=256",
        "hidden_states.layers=[0,3]",
        "hidden_states.block_length=32",
        "hidden_states.validation_vectors=512",
        "dictionary.n_atoms=64",
        "prox.k=8",
        "inference=unrolled",
        "update=adam",
        "callbacks=none",
        "trainer.enable_progress_bar=false",
        "text=local",
        f"text.path={texts}",
        *others,
    ]


def environment(**others: str) -> dict[str, str]:
    """Return the environment without what a launcher around the tests may have set."""
    foreign = ("SLURM_", "TORCHELASTIC_", "WANDB_")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    return {**clean, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **others}


def torchrun(*options: str) -> list[str]:
    """Return the command that starts ranks of train.py; its overrides follow."""
    return [sys.executable, "-m", "torch.distributed.run", *options, TRAIN]


def run(command: list[str], cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; no process of its session may outlive it by more than seconds."""
    with started(command, cwd, **variables) as process:
        said, _ = process.communicate(timeout=240)
        wait_until(lambda: not _session(process.pid), 15)
    return subprocess.CompletedProcess(command, process.returncode, said)


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def started(command: list[str], cwd: Path, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """Start a command in a session of its own, and kill what is left of that in the end."""
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        for pid in _session(process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def _session(session: int) -> list[int]:
    """Return the living processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, its = path.read_text().rpartition(")")[2].split()[:4]
            if its == str(session) and state != "Z":
                found.append(int(path.parent.name))
    return found


def read_run(
    folder: Path,
    processes: int,
    n_atoms: int = 64,
    at_most: float = 0.9,
    vectors: int = VECTORS,
) -> dict[str, float]:
    """Check that a run directory has one of everything and a fair FVU; return its figures."""
    found = sorted(path.name for path in folder.iterdir())
    expected = {".hydra", "dictionary", "metrics.csv", "metrics.json", "run.log"}
    assert expected <= set(found) <= {*expected, "checkpoints", "wandb", "factors.html"}, found
    saved = load_file(folder / "dictionary" / "dictionary.safetensors")
    assert (n_atoms, 384) in [tensor.shape for tensor in saved.values()]
    figures: dict[str, float] = json.loads((folder / "metrics.json").read_text())
    assert vectors <= figures["train/vectors"] < vectors + processes * 256 * 2
    assert 0 < figures["val/fvu"] < at_most
    return figures
