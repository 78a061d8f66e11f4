"""A scheduler of one machine, for tests: sbatch, srun and scontrol as far as job scripts use them.

As the real one it runs a copy of the script, tells the tasks who they are, sends the signal of
``--signal`` to the tasks alone, starts a job again with SLURM_RESTART_COUNT after
``scontrol requeue`` (and ends what is left of it before), and appends to its output or overwrites
it as asked. Unlike with the real one all nodes are this machine, and there are no job arrays.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

KILL_WAIT = 30.0  # seconds that a job has to end after SIGTERM, as KillWait in slurm.conf
COMMANDS = ("sbatch", "srun", "scontrol", "sacct")
SHORT = {"-n": "ntasks", "-N": "nodes", "-J": "job-name", "-c": "cpus-per-task"}
SPACED = ("--output", "--error")  # whose value may follow as a word of its own


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
            path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "$@"\n')
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
        return list(_read(job / "tasks.json", []))

    def near_the_limit(self, job: Path) -> None:
        """Send the signal that ``--signal=NAME@SECONDS`` asked for to the tasks of the job."""
        name = _read(job / "options.json", {})["signal"].partition("@")[0]
        _signal(self.tasks(job), signal.Signals[name if name[:3] == "SIG" else f"SIG{name}"])


def sbatch(arguments: list[str]) -> int:
    """Submit a job script; with ``--wait`` end with the job and its exit code."""
    given, (script, *others) = _options(arguments)
    text = Path(script).read_text().splitlines()
    wanted = [line[len("#SBATCH ") :].split() for line in text if line.startswith("#SBATCH ")]
    options = _options([word for line in wanted for word in line])[0] | given
    job = _new_job()
    shutil.copy(script, job / "slurm_script")
    (job / "options.json").write_text(json.dumps(options))
    daemon = subprocess.Popen(
        [sys.executable, __file__, "slurmd", str(job), *others],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    (job / "daemon").write_text(str(daemon.pid))
    sys.stdout.write(f"Submitted batch job {job.name}\n")
    sys.stdout.flush()
    return daemon.wait() if "wait" in options else 0


def slurmd(arguments: list[str]) -> int:
    """Run a job, again and again while it is requeued."""
    job, others = Path(arguments[0]), arguments[1:]
    options = _read(job / "options.json", {})
    pattern = options.get("output", "slurm-%j.out").replace("%t", "0")
    output = Path(pattern.replace("%j", job.name))
    restarts = 0
    while True:
        output.parent.mkdir(parents=True, exist_ok=True)
        mode = "a" if options.get("open-mode") == "append" else "w"
        with output.open(mode) as file:
            code = _run(job, [str(job / "slurm_script"), *others], options, restarts, file)
        if not (job / "requeue").exists() or "requeue" not in options:
            return code
        (job / "requeue").unlink()
        restarts += 1


def _run(job: Path, command: list[str], options: dict[str, str], restarts: int, output: Any) -> int:
    (job / "tasks.json").unlink(missing_ok=True)
    batch = subprocess.Popen(
        ["bash", *command],
        env={**os.environ, **_of_the_job(job, options, restarts)},
        stdout=output,
        stderr=output,
        start_new_session=True,
    )
    (job / "session").write_text(str(batch.pid))
    code = batch.wait()
    deadline = time.monotonic() + KILL_WAIT
    while any(_lives(pid) for pid in _read(job / "tasks.json", [])):
        if time.monotonic() > deadline:
            os.killpg(batch.pid, signal.SIGKILL)
        time.sleep(0.05)
    return code if code >= 0 else 128 - code


def _of_the_job(job: Path, options: dict[str, str], restarts: int) -> dict[str, str]:
    """Return what sbatch puts into the environment of the batch script."""
    nodes, per_node = int(options.get("nodes", 1)), options.get("ntasks-per-node")
    tasks = int(options.get("ntasks", nodes * int(per_node or 1)))
    names = ",".join(["localhost"] * nodes)
    variables = {
        "ENVIRONMENT": "BATCH",
        "SLURM_JOB_ID": job.name,
        "SLURM_JOBID": job.name,
        "SLURM_JOB_NAME": options.get("job-name", "slurm_script"),
        "SLURM_JOB_NODELIST": names,
        "SLURM_NODELIST": names,
        "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_NNODES": str(nodes),
        "SLURM_NTASKS": str(tasks),
        "SLURM_NPROCS": str(tasks),
        "SLURM_SUBMIT_DIR": str(Path.cwd()),
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
    }
    if per_node:
        variables["SLURM_NTASKS_PER_NODE"] = per_node
    if "cpus-per-task" in options:
        variables["SLURM_CPUS_PER_TASK"] = options["cpus-per-task"]
    if restarts:
        variables["SLURM_RESTART_COUNT"] = str(restarts)
    return variables


def srun(arguments: list[str]) -> int:
    """Run a command as all tasks of the job, and wait for them."""
    options, command = _options(arguments)
    job = Path(os.environ["FAKE_SLURM"]) / "jobs" / os.environ["SLURM_JOB_ID"]
    step = len(list(job.glob("step.*")))
    (job / f"step.{step}").touch()
    count = int(options.get("ntasks", os.environ["SLURM_NTASKS"]))
    per_node = -(-count // int(os.environ["SLURM_NNODES"]))
    tasks = []
    for rank in range(count):
        variables = {
            "SLURM_PROCID": rank,
            "SLURM_LOCALID": rank % per_node,
            "SLURM_NODEID": rank // per_node,
            "SLURM_NTASKS": count,
            "SLURM_NPROCS": count,
            "SLURM_STEP_ID": step,
            "SLURM_STEPID": step,
            "SLURM_STEP_NUM_TASKS": count,
        }
        told = {key: str(value) for key, value in variables.items()}
        tasks.append(subprocess.Popen(command, env={**os.environ, **told}))
    (job / "tasks.json").write_text(json.dumps([task.pid for task in tasks]))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, lambda number, _: _signal([t.pid for t in tasks], number))
    return _wait(tasks, kills=options.get("kill-on-bad-exit", "0") != "0")


def _wait(tasks: list[subprocess.Popen[bytes]], kills: bool) -> int:
    """Wait for the tasks; where `kills`, one that fails takes the others with it."""
    deadline = None
    while None in [task.poll() for task in tasks]:
        if kills and deadline is None and any(task.returncode for task in tasks):
            _signal([task.pid for task in tasks], signal.SIGTERM)
            deadline = time.monotonic() + KILL_WAIT
        if deadline is not None and time.monotonic() > deadline:
            _signal([task.pid for task in tasks], signal.SIGKILL)
        time.sleep(0.02)
    codes = [task.returncode for task in tasks]
    return max(code if code >= 0 else 128 - code for code in codes)


def scontrol(arguments: list[str]) -> int:
    """``scontrol requeue JOB``: end the job and start it again; ``show hostnames LIST``."""
    if arguments[:2] == ["show", "hostnames"]:
        names = arguments[2] if len(arguments) > 2 else os.environ["SLURM_JOB_NODELIST"]
        sys.stdout.write("\n".join(names.split(",")) + "\n")
        return 0
    if arguments[:1] != ["requeue"] or len(arguments) != 2:
        sys.stderr.write(f"scontrol: invalid {arguments}\n")
        return 1
    job = Path(os.environ["FAKE_SLURM"]) / "jobs" / arguments[1]
    if not job.is_dir() or "requeue" not in _read(job / "options.json", {}):
        sys.stderr.write("Requested operation is presently disabled\n")
        return 1
    (job / "requeue").touch()
    _signal(_read(job / "tasks.json", []), signal.SIGTERM)
    return 0


def sacct(arguments: list[str]) -> int:
    """Know nothing of any job yet, as the real one for some seconds."""
    sys.stdout.write("JobID|State\n")
    return 0


def _options(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Split ``--key=value --flag -n 2 REST`` into the options and the rest."""
    options: dict[str, str] = {}
    at = 0
    while at < len(words) and words[at].startswith("-"):
        key, _, value = words[at].removeprefix("--").partition("=")
        if key in SHORT:
            at += 1
            key, value = SHORT[key], words[at]
        elif words[at] in SPACED:
            at += 1
            value = words[at]
        options[key] = value or "1"
        at += 1
    return options, words[at:]


def _new_job() -> Path:
    """Make the folder of a job whose id leads Lightning to a free port: 15000 + id % 10000."""
    while True:
        number = random.randrange(100_000, 999_999)
        folder = Path(os.environ["FAKE_SLURM"]) / "jobs" / str(number)
        with contextlib.suppress(OSError), socket.socket() as free:
            free.bind(("", 15_000 + number % 10_000))
            folder.mkdir()
            return folder


def _read(path: Path, otherwise: Any) -> Any:
    return json.loads(path.read_text()) if path.exists() else otherwise


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(holds: Callable[[], bool], seconds: float) -> None:
    """Wait until something holds, at most so long."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(globals()[sys.argv[1]](sys.argv[2:]))
