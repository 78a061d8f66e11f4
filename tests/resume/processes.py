"""Real runs in processes of their own, watched from outside."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import dictlearn

ROOT = Path(dictlearn.__file__).parent.parent
TAG = "DICTLEARN_TEST_TAG"
SMALL = [
    "trainer=cpu",
    "max_vectors=30000",
    "hidden_states.batch_size=512",
    "hidden_states.layers=[0,3]",
    "hidden_states.validation_vectors=2048",
    "dictionary.n_atoms=256",
    "dictionary.dead_after_vectors=4000",
    "callbacks.revival.every_vectors=5000",
    "prox.k=8",
    "trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=5",
    "text=local",
]
TWO = ["trainer=ddp_cpu", "hidden_states.batch_size=256"]
BY_TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node=2"]


class Launched:
    """A run in processes of its own; all of them carry a tag, so that none can be missed."""

    def __init__(self, place: Path, overrides: Sequence[str], launcher: Sequence[str] = ()) -> None:
        self.tag = uuid.uuid4().hex
        self.log = place / f"{self.tag}.log"
        environment = {**os.environ, TAG: self.tag, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with self.log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, *launcher, str(ROOT / "train.py"), *overrides],
                cwd=place,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def said(self) -> str:
        """Everything that the processes printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, words: str, seconds: float = 120) -> None:
        """Wait until these words are printed."""
        end = time.monotonic() + seconds
        while words not in self.said():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < end, self.said()
            time.sleep(0.02)

    def ranks(self) -> list[int]:
        """The process ids of the ranks, rank 0 first."""
        found: dict[int, int] = {}
        for pid in self.alive():
            environment = _environment(pid)
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"torch.distributed.run" in command or b"train.py" not in command:
                continue
            found[int(environment.get("LOCAL_RANK", "0"))] = pid
        return [found[rank] for rank in sorted(found)]

    def alive(self) -> list[int]:
        """The process ids of all that belongs to the run and is still there."""
        pids = (int(entry) for entry in os.listdir("/proc") if entry.isdigit())
        return [pid for pid in pids if _environment(pid).get(TAG) == self.tag]

    def end(self, seconds: float) -> int:
        """Wait for the end of all processes; return the exit code of the launched one."""
        began = time.monotonic()
        code = self.process.wait(seconds)
        while self.alive():
            assert time.monotonic() - began < seconds, f"left over: {self.alive()}"
            time.sleep(0.05)
        return code

    def kill(self) -> None:
        """End whatever is left."""
        for pid in self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def launched(
    place: Path, overrides: Sequence[str], launcher: Sequence[str] = ()
) -> Iterator[Launched]:
    """Start a run; nothing of it outlives the block."""
    run = Launched(place, overrides, launcher)
    try:
        yield run
    finally:
        run.kill()


def _environment(pid: int) -> dict[str, str]:
    """The environment a process was started with; empty for one that is gone or a zombie."""
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    pairs = (entry.decode(errors="replace").partition("=") for entry in entries if entry)
    return {name: value for name, _, value in pairs}
