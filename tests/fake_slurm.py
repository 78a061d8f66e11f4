"""A scheduler of one machine, for tests; what it does is in `slurm_commands`."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests import slurm_commands
from tests.slurm_commands import read, send

COMMANDS = ("sbatch", "srun", "scontrol", "sacct")


class FakeSlurm:
    """The scheduler as a test sees it; leaving its context ends every process of its jobs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.submissions: list[subprocess.Popen[str]] = []
        bin_folder = folder / "bin"
        bin_folder.mkdir(parents=True)
        (folder / "jobs").mkdir()
        for name in COMMANDS:
            path = bin_folder / name
            path.write_text(
                f'#!/bin/sh\nexec "{sys.executable}" "{slurm_commands.__file__}" {name} "$@"\n'
            )
            path.chmod(0o755)

    def __enter__(self) -> FakeSlurm:
        return self

    def __exit__(self, *_: object) -> None:
        for job in self.jobs():
            for name in ("daemon", "session"):  # in this order: it would start the job again
                with contextlib.suppress(OSError, ValueError):
                    os.killpg(int((job / name).read_text()), signal.SIGKILL)
        for submission in self.submissions:
            submission.kill()
            submission.wait()

    def variables(self) -> dict[str, str]:
        """Return what finds the commands of this scheduler."""
        path = f"{self.folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {"PATH": path, "FAKE_SLURM": str(self.folder)}

    def submit(
        self, *arguments: str, cwd: Path, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start ``sbatch --wait ARGUMENTS`` in `cwd`; it ends with the job, with its exit code."""
        clean = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
        self.submissions.append(
            subprocess.Popen(
                ["sbatch", "--wait", *arguments],
                cwd=cwd,
                env={**clean, **(environment or {}), **self.variables()},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return self.submissions[-1]

    def jobs(self) -> list[Path]:
        """Return the folders of the jobs; their names are the job ids."""
        return sorted((self.folder / "jobs").iterdir())

    def tasks(self, job: Path) -> list[int]:
        """Return the process ids of the tasks of the last step."""
        return list(read(job / "tasks.json", []))

    def near_the_limit(self, job: Path) -> None:
        """Send the signal that ``--signal=NAME@SECONDS`` asked for to the tasks of the job."""
        name = read(job / "options.json", {})["signal"].partition("@")[0]
        send(self.tasks(job), signal.Signals[name if name[:3] == "SIG" else f"SIG{name}"])


def wait_until(holds: Callable[[], bool], seconds: float) -> None:
    """Wait until something holds, at most so long."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.05)
