"""The trainer and the processes that a launcher started: they fit, or it is said how they would."""

import pytest
import pytorch_lightning as pl
from lightning_fabric.plugins.environments.lightning import LightningEnvironment

from dictlearn.cluster import check_world, environments
from dictlearn.errors import InputError

TASK = {
    "SLURM_JOB_ID": "42",
    "SLURM_JOB_NAME": "train",
    "SLURM_NTASKS": "2",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Makes this process the first of two tasks."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    for key, value in TASK.items():
        monkeypatch.setenv(key, value)
    return monkeypatch


def trainer(devices: int) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", devices=devices, logger=False, plugins=list(environments())
    )


def test_outside_of_slurm_lightning_finds_out_by_itself(task: pytest.MonkeyPatch) -> None:
    for key in TASK:
        task.delenv(key)
    assert environments() == []
    check_world(trainer(2))


def test_lightning_never_requeues_by_itself(task: pytest.MonkeyPatch) -> None:
    (plugin,) = environments()
    assert plugin.auto_requeue is False  # type: ignore[attr-defined]
    check_world(trainer(2))
    task.setenv("TORCHELASTIC_RUN_ID", "x")
    assert environments() == []


def test_a_job_of_one_task_starts_the_other_processes_itself(task: pytest.MonkeyPatch) -> None:
    task.setenv("SLURM_NTASKS", "1")
    (plugin,) = environments()
    assert isinstance(plugin, LightningEnvironment)
    check_world(trainer(1))
    check_world(trainer(2))


@pytest.mark.parametrize("devices", [1, 3])
def test_other_numbers_than_the_launcher_started_are_refused(
    devices: int, task: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"started 2 .*give trainer\.devices=2 trainer"):
        check_world(trainer(devices))


@pytest.mark.parametrize(
    ("key", "advice"),
    [("SLURM_STEP_NUM_TASKS", "srun python"), ("SLURM_NTASKS_PER_NODE", "--ntasks-per-node")],
)
def test_tasks_that_would_wait_for_ever_are_refused(
    key: str, advice: str, task: pytest.MonkeyPatch
) -> None:
    task.delenv(key)
    with pytest.raises(InputError, match=advice):
        environments()
