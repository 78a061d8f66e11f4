"""SLURM: the job script of the docs, as it stands there, through a scheduler of one machine."""

import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from tests.fake_slurm import FakeSlurm, wait_until
from tests.integration.launches import ROOT, TRAIN, read_run, started, tiny

SCRIPT = ROOT / "docs" / "slurm" / "train.sbatch"
TWO_TASKS = ("--nodes=1", "--ntasks-per-node=2")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A working directory with train.py, from which jobs are submitted."""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "train.py").symlink_to(ROOT / "train.py")
    return folder


@pytest.mark.slow
def test_the_job_script_makes_one_run_of_all_tasks(
    place: Path, tmp_path: Path, few_texts: Path
) -> None:
    with FakeSlurm(tmp_path / "slurm") as slurm:
        job = slurm.submit(*TWO_TASKS, str(SCRIPT), *tiny(few_texts), cwd=place)
        said, _ = job.communicate(timeout=200)
        (folder,) = slurm.jobs()
        log = (place / f"slurm-{folder.name}.out").read_text()
    assert job.returncode == 0, said + log
    assert sorted(path.name for path in (place / "outputs" / "dictionary").iterdir()) == [
        f"slurm-{folder.name}"
    ]
    read_run(place / "outputs" / "dictionary" / f"slurm-{folder.name}", processes=2)
    assert log.count("transformer minilm") == 1


STEP = """#!/bin/bash
#SBATCH --ntasks-per-node=2
#SBATCH --signal=USR1@60
#SBATCH --requeue
#SBATCH --open-mode=append
trap 'echo the shell was told' USR1
srun python "$@"
"""
TASK = """
import os, signal, subprocess, sys, time
from dictlearn.launch import is_main_process, run_directory
found = os.environ.get("SLURM_RESTART_COUNT", "0"), run_directory("outputs", "x")
def told(*_):
    if is_main_process():
        subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGUSR1, told)
open(f"ready-{os.environ['SLURM_PROCID']}", "w").close()
sys.stdout.write(" ".join(found) + "\\n")
sys.stdout.flush()
if found[0] == "0":
    time.sleep(60)
"""


def test_a_requeued_job_comes_back_to_the_same_directory(place: Path, tmp_path: Path) -> None:
    (place / "job.sh").write_text(STEP)
    (place / "task.py").write_text(TASK)
    with FakeSlurm(tmp_path / "slurm") as slurm:
        environment = {"PYTHONPATH": str(ROOT)}
        job = slurm.submit("job.sh", "task.py", cwd=place, environment=environment)
        wait_until(lambda: len(list(place.glob("ready-*"))) == 2, 60)
        (folder,) = slurm.jobs()
        slurm.near_the_limit(folder)
        job.communicate(timeout=60)
    lines = (place / f"slurm-{folder.name}.out").read_text().splitlines()
    name = f"outputs/x/slurm-{folder.name}"
    assert sorted(lines) == [f"0 {name}"] * 2 + [f"1 {name}"] * 2
    assert job.returncode == 0


def test_the_scheduler_of_the_tests_ends_all_tasks_with_one_that_fails(
    place: Path, tmp_path: Path
) -> None:
    (place / "job.sh").write_text("#SBATCH -n 2\nsrun --kill-on-bad-exit=1 python task.py\n")
    (place / "task.py").write_text(
        "import os, sys, time\n"
        "sys.exit(3) if os.environ['SLURM_PROCID'] == '1' else time.sleep(60)\n"
    )
    with FakeSlurm(tmp_path / "slurm") as slurm:
        job = slurm.submit("job.sh", cwd=place)
        job.communicate(timeout=30)
        (folder,) = slurm.jobs()
        given = options(folder)
    assert job.returncode == 128 + signal.SIGTERM
    assert given["ntasks"] == "2"


@pytest.mark.slow
def test_submitit_makes_a_job_of_every_value_and_the_one_near_its_limit_goes_on(
    place: Path, tmp_path: Path, few_texts: Path
) -> None:
    """C4 the signal by which submitit lets SLURM announce a limit, to one of two jobs of a sweep:
    saved between two steps, requeued once, and gone on with in its directory; the other runs on.
    """
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    submit = (
        *("hydra/launcher=submitit_slurm", "hydra.launcher.tasks_per_node=${trainer.devices}"),
        *("hydra.launcher.timeout_min=10", "hydra.launcher.cpus_per_task=1", "trainer=ddp_cpu"),
        "+hydra.launcher.additional_parameters.requeue=true",
    )
    long = ("max_vectors=61440", "trainer.val_check_interval=20", "callbacks=default")
    values = ("dictionary.n_atoms=64,32", "trainer.devices=2", *long)
    command = [sys.executable, TRAIN, "-m", *submit, *tiny(few_texts), *values]
    variables = {"PYTHONPATH": str(ROOT), "SUBMITIT_PREEMPT_SIGNAL": "USR2"}
    with FakeSlurm(tmp_path / "slurm") as slurm:
        variables |= slurm.variables()
        with started(command, place, **variables) as process:
            sweeps = place / "outputs" / "dictionary"
            wait_until(
                lambda: any("step 20 of" in read(log) for log in sweeps.glob("*/0/run.log")), 240
            )
            (job,) = (job for job in slurm.jobs() if options(job)["array-task"] == "0")
            slurm.near_the_limit(job)
            said, _ = process.communicate(timeout=240)
    (sweep,) = sweeps.iterdir()
    first, second = (read(path) for path in sorted(sweep.glob(".submitit/*_[01]/*_0_log.out")))
    assert process.returncode == 0, said + first + second
    assert sorted(os.listdir(sweep)) == [".submitit", "0", "1", "multirun.yaml"]
    stopped = re.findall(r"stopped by SIGUSR1 after step (\d+)", first)
    assert len(stopped) == 1, first
    assert re.findall(r"Going on from step (\d+) of", first) == stopped
    assert first.count("in its queue again") == 1
    assert "stopped by" not in second
    assert "Going on" not in second
    for number, n_atoms in (("0", 64), ("1", 32)):
        read_run(sweep / number, 2, n_atoms, vectors=61_440)


@pytest.mark.slow
def test_a_run_near_its_limit_is_requeued_and_goes_on(
    place: Path, tmp_path: Path, few_texts: Path
) -> None:
    """C4 SIGUSR1 of SLURM before the limit: saved, requeued, and gone on with by itself."""
    long = ["max_vectors=200000", "trainer.val_check_interval=20", "callbacks=default"]
    with FakeSlurm(tmp_path / "slurm") as slurm:
        job = slurm.submit(*TWO_TASKS, str(SCRIPT), *tiny(few_texts), *long, cwd=place)
        wait_until(lambda: any("step 20 of" in read(log) for log in place.glob("*.out")), 200)
        (folder,) = slurm.jobs()
        slurm.near_the_limit(folder)
        said, _ = job.communicate(timeout=200)
        log = read(place / f"slurm-{folder.name}.out")
    assert job.returncode == 0, said + log
    assert "stopped by SIGUSR1 after step" in log
    assert "in its queue again" in log
    assert "Going on from step" in log
    out = place / "outputs" / "dictionary"
    assert [path.name for path in out.iterdir()] == [f"slurm-{folder.name}"]
    figures = json.loads((out / f"slurm-{folder.name}" / "metrics.json").read_text())
    assert figures["train/vectors"] >= 200_000


def options(job: Path) -> dict[str, str]:
    """Return what ``sbatch`` was asked for."""
    found: dict[str, str] = json.loads((job / "options.json").read_text())
    return found


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
