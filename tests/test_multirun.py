"""Sweeps: the ranks of a job start as a single run, and nothing of a job stays for the next."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from lightning_fabric.strategies.launchers.subprocess_script import (
    _hydra_subprocess_cmd,
    _launch_process_observer,
)
from omegaconf import DictConfig

from dictlearn import cli, multirun
from dictlearn.errors import InputError
from dictlearn.multirun import own_processes


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with an option of the user's own, outside of any launcher."""
    (tmp_path / "mine" / "prox").mkdir(parents=True)
    (tmp_path / "mine" / "prox" / "own.yaml").write_text("defaults: [topk]\nk: 3\n")
    for key in [key for key in os.environ if key.startswith(("SLURM_", "TORCHELASTIC_"))]:
        monkeypatch.delenv(key)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def launch(task: Any, *arguments: str, monkeypatch: pytest.MonkeyPatch, head: Any = ()) -> None:
    """Run a task for every job, as ``python train.py ARGUMENTS`` does."""
    monkeypatch.setattr(sys, "argv", ["train.py", *head, *arguments])
    cli._launch(task, "train", list(arguments) if head else None)


@pytest.mark.parametrize("head", [(), ("train",)])
def test_a_rank_is_started_with_the_config_and_directory_of_its_job(
    head: tuple[str, ...], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[tuple[DictConfig, str, list[str]]] = []

    def start(config: DictConfig) -> None:
        with own_processes():
            command, where = _hydra_subprocess_cmd(1)
            assert where == str(place)
            jobs.append((config, HydraConfig.get().runtime.output_dir, list(command)))

    sweep = ["-m", "--config-dir", "mine", "prox=own,batch_topk", "name='a b,c'", "seed=1,2"]
    hydra = ["hydra.sweep.dir=s", "+hydra.job.env_set.MARK=kept", "hydra.sweeper.max_batch_size=3"]
    launch(start, *sweep, *hydra, monkeypatch=monkeypatch, head=head)
    assert sys.argv == ["train.py", *head, *sweep, *hydra]
    assert [Path(folder).name for _, folder, _ in jobs] == ["0", "1", "2", "3"]
    for config, folder, (python, program, *arguments) in jobs:
        assert (python, program) == (sys.executable, str(place / "train.py"))
        assert arguments[: len(head)] == list(head)
        ranks: list[tuple[DictConfig, str]] = []

        def rank(config: DictConfig, ranks: list[Any] = ranks) -> None:
            assert os.environ["MARK"] == "kept"
            ranks.append((config, HydraConfig.get().runtime.output_dir))

        launch(rank, *arguments[len(head) :], monkeypatch=monkeypatch)
        assert ranks == [(config, folder)]
    assert sorted(os.listdir(place)) == ["mine", "s"]


def test_nothing_of_a_job_stays_for_the_next(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in multirun.VARIABLES:
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setattr(multirun, "LAST_SECONDS", 0.2)
    ranks: list[subprocess.Popen[bytes]] = []
    threads = torch.get_num_threads()

    def fail(config: DictConfig) -> None:
        with own_processes():
            assert "LOCAL_RANK" not in os.environ
            assert os.environ["OMP_NUM_THREADS"] == "7"
            assert torch.get_num_threads() == threads
            assert not torch.distributed.is_initialized()
            os.environ |= {"LOCAL_RANK": "0", "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
            torch.set_num_threads(threads + 1)
            torch.distributed.init_process_group(
                "gloo", init_method=f"file://{place}/store{len(ranks)}", rank=0, world_size=1
            )
            # One that ends badly, one that hangs, and one that hangs and will not be asked.
            deaf = "trap '' TERM; exec sleep 60"
            for command in ("exit 2", "sleep 60", deaf):
                ranks.append(subprocess.Popen(["bash", "-c", command]))
            _launch_process_observer(ranks[-3:])
            raise InputError(f"seed {config.seed} fails")

    with pytest.raises(SystemExit):
        launch(fail, "-m", "seed=1,2", monkeypatch=monkeypatch)
    assert len(ranks) == 6
    assert all(rank.returncode is not None for rank in ranks)
    for thread in threading.enumerate():  # a thread that sees a failed one would kill us
        assert thread.name != multirun.OBSERVER or thread._child_processes == []  # type: ignore[attr-defined]
    assert "LOCAL_RANK" not in os.environ


def test_a_single_run_is_left_as_it_is(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(config: DictConfig) -> None:
        before = list(sys.argv)
        with own_processes():
            os.environ["LOCAL_RANK"] = "0"
            assert sys.argv == before
        assert os.environ["LOCAL_RANK"] == "0"

    monkeypatch.setenv("LOCAL_RANK", "0")
    launch(run, "seed=1", monkeypatch=monkeypatch)


@pytest.mark.parametrize(
    ("environment", "advice"),
    [
        ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2"}, "torchrun started 2 processes"),
        ({"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "train"}, "SLURM started 2 processes"),
        ({"SUBMITIT_LOCAL_NTASKS": "2"}, "hydra.launcher.tasks_per_node=1"),
    ],
)
def test_a_sweep_in_several_processes_is_refused(
    environment: dict[str, str],
    advice: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(SystemExit):
        cli.train(["-m", "seed=1,2"])
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("dictlearn: ")]
    assert len(said) == 1
    assert advice in said[0]
