"""sbatch, srun, scontrol and sacct of one machine, as far as job scripts and submitit use them.

As the real ones they run a copy of the script, tell the tasks who they are, send the signal of
``--signal`` to the tasks alone, start a job again with SLURM_RESTART_COUNT after
``scontrol requeue`` (and end what is left of it before), and append to its output or overwrite it
as asked. The jobs of an array start all at once. Unlike with the real ones all nodes are this
machine, and a job comes back only where ``--requeue`` asks for it, as with JobRequeue=0.
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
from pathlib import Path
from typing import Any

KILL_WAIT = 30.0  # seconds that a job has to end after SIGTERM, as KillWait in slurm.conf
SHORT = {"-n": "ntasks", "-N": "nodes", "-J": "job-name", "-c": "cpus-per-task"}
SPACED = ("--output", "--error")  # whose value may follow as a word of its own


def sbatch(arguments: list[str]) -> int:
    """Submit a job script; with ``--wait`` end with the job and its exit code."""
    given, (script, *others) = _options(arguments)
    text = Path(script).read_text().splitlines()
    wanted = [line[len("#SBATCH ") :].split() for line in text if line.startswith("#SBATCH ")]
    options = _options([word for line in wanted for word in line])[0] | given
    first, last = map(int, options.get("array", "0-0").partition("%")[0].split("-"))
    jobs = [_new_job() for _ in range(first, last + 1)]
    daemons = []
    for task, job in enumerate(jobs, start=first):
        array = {"array-job": jobs[0].name, "array-task": str(task)} if "array" in options else {}
        shutil.copy(script, job / "slurm_script")
        (job / "options.json").write_text(json.dumps({**options, **array}))
        daemon = subprocess.Popen(
            [sys.executable, __file__, "slurmd", str(job), *others],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        (job / "daemon").write_text(str(daemon.pid))
        daemons.append(daemon)
    sys.stdout.write(f"Submitted batch job {jobs[0].name}\n")
    sys.stdout.flush()
    return max(daemon.wait() for daemon in daemons) if "wait" in options else 0


def slurmd(arguments: list[str]) -> int:
    """Run a job, again and again while it is requeued."""
    job, others = Path(arguments[0]), arguments[1:]
    options = read(job / "options.json", {})
    pattern = options.get("output", "slurm-%j.out").replace("%t", "0").replace("%j", job.name)
    for sign, key in (("%A", "array-job"), ("%a", "array-task")):
        pattern = pattern.replace(sign, options.get(key, sign))
    output = Path(pattern)
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
    while any(_lives(pid) for pid in read(job / "tasks.json", [])):
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
    if "array-job" in options:
        variables["SLURM_ARRAY_JOB_ID"] = options["array-job"]
        variables["SLURM_ARRAY_TASK_ID"] = options["array-task"]
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
        signal.signal(number, lambda number, _: send([t.pid for t in tasks], number))
    return _wait(tasks, kills=options.get("kill-on-bad-exit", "0") != "0")


def _wait(tasks: list[subprocess.Popen[bytes]], kills: bool) -> int:
    """Wait for the tasks; where `kills`, one that fails takes the others with it."""
    deadline = None
    while None in [task.poll() for task in tasks]:
        if kills and deadline is None and any(task.returncode for task in tasks):
            send([task.pid for task in tasks], signal.SIGTERM)
            deadline = time.monotonic() + KILL_WAIT
        if deadline is not None and time.monotonic() > deadline:
            send([task.pid for task in tasks], signal.SIGKILL)
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
    job = _found(arguments[1])
    if job is None or "requeue" not in read(job / "options.json", {}):
        sys.stderr.write("Requested operation is presently disabled\n")
        return 1
    (job / "requeue").touch()
    send(read(job / "tasks.json", []), signal.SIGTERM)
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


def _found(name: str) -> Path | None:
    """Return the folder of a job, of an array by ``ARRAY_TASK``."""
    for job in (Path(os.environ["FAKE_SLURM"]) / "jobs").iterdir():
        options = read(job / "options.json", {})
        if name in (job.name, f"{options.get('array-job')}_{options.get('array-task')}"):
            return job
    return None


def read(path: Path, otherwise: Any) -> Any:
    """Return what a file of this scheduler holds, or something else where it is not there."""
    return json.loads(path.read_text()) if path.exists() else otherwise


def send(pids: list[int], number: int) -> None:
    """Send a signal to those processes that are still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(globals()[sys.argv[1]](sys.argv[2:]))
