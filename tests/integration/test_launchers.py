"""Launchers, as a user types them: however many processes, one of everything is left."""

import os
import signal
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from dictlearn.storage.committed import committed
from tests.fake_slurm import wait_until
from tests.integration.launches import TRAIN, read_run, run, started, tiny, torchrun
from tests.loggers.read_offline import read_offline

OFFLINE = ("logger=[csv,wandb]", "logger.wandb.mode=offline")
TERMINAL = {"FORCE_COLOR": "1"}  # a bar is drawn
BAR = "\x1b[?25l"  # where one is begun: the cursor goes


def test_torchrun_makes_one_run_of_two_processes(tmp_path: Path, few_texts: Path) -> None:
    shown = [*tiny(few_texts), "trainer.enable_progress_bar=true", "callbacks=default"]
    command = [*torchrun("--nproc-per-node=2"), *shown, *OFFLINE, "trainer=ddp_cpu"]
    done = run(command, tmp_path, **TERMINAL)
    assert done.returncode == 0, done.stdout
    (folder,) = (tmp_path / "outputs" / "dictionary").iterdir()
    assert folder.name.startswith("elastic-")
    assert os.listdir(tmp_path / "outputs") == ["dictionary"]
    figures = read_run(folder, processes=2)
    record = read_offline(folder)
    assert len(record.artifacts) == 1
    assert record.exit_codes == [0]
    rows = [row for row in record.history if "val/fvu" in row]
    assert rows[-1]["val/fvu"] == pytest.approx(figures["val/fvu"])
    assert done.stdout.count(BAR) == 1
    assert done.stdout.count("transformer minilm") == 1
    assert done.stdout.count("Held-out text") == 1
    assert done.stdout.count("step 8 of 8: held-out FVU") == 1


@pytest.mark.slow
def test_a_sweep_over_the_number_of_processes_makes_one_run_for_every_job(
    tmp_path: Path, few_texts: Path
) -> None:
    grid = ("trainer.devices=2,1", "dictionary.n_atoms=32,64", "trainer=ddp_cpu")
    shown = ("trainer.enable_progress_bar=true", "callbacks=progress")
    command = [sys.executable, TRAIN, "-m", *tiny(few_texts), *shown, *grid, *OFFLINE]
    done = run(command, tmp_path, **TERMINAL)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count(BAR) == 4
    (sweep,) = (tmp_path / "outputs" / "dictionary").iterdir()
    assert sorted(os.listdir(sweep)) == ["0", "1", "2", "3", "multirun.yaml"]
    figures = {}
    for job in range(4):
        devices, n_atoms = 2 - job % 2, 32 * (1 + job // 2)
        figures[devices, n_atoms] = read_run(sweep / str(job), devices, n_atoms)
        assert len(read_offline(sweep / str(job)).artifacts) == 1
    for devices in (1, 2):
        assert figures[devices, 64]["val/fvu"] < figures[devices, 32]["val/fvu"]
    assert len({tuple(job.values()) for job in figures.values()}) == 4


@pytest.mark.slow
def test_a_job_that_fails_leaves_the_next_one_of_the_sweep_alone(
    tmp_path: Path, few_texts: Path
) -> None:
    ranks = ("trainer=ddp_cpu", "callbacks=default", "callbacks.checkpoint.monitor=val/no,val/fvu")
    done = run([sys.executable, TRAIN, "-m", *tiny(few_texts), *ranks], tmp_path)
    assert done.returncode == 2
    said = [line for line in done.stdout.splitlines() if line.startswith("dictlearn: ")]
    assert len(said) == 1, done.stdout
    assert "val/no" in said[0]
    (sweep,) = (tmp_path / "outputs" / "dictionary").iterdir()
    assert sorted(os.listdir(sweep)) == ["1", "multirun.yaml"]
    read_run(sweep / "1", processes=2)


@pytest.mark.slow
def test_joblib_runs_the_jobs_of_a_sweep_in_workers(tmp_path: Path, few_texts: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    workers = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "trainer=ddp_cpu")
    grid = ("trainer.devices=1,2",)
    done = run([sys.executable, TRAIN, "-m", *workers, *tiny(few_texts), *grid], tmp_path)
    assert done.returncode == 0, done.stdout
    (sweep,) = (tmp_path / "outputs" / "dictionary").iterdir()
    assert sorted(os.listdir(sweep)) == ["0", "1", "multirun.yaml"]
    for job in (0, 1):
        read_run(sweep / str(job), processes=job + 1)


@pytest.mark.slow
@pytest.mark.parametrize("group", [False, True])
def test_a_sweep_in_workers_is_stopped_as_a_whole_and_goes_on(
    group: bool, tmp_path: Path, few_texts: Path
) -> None:
    """C4 SIGTERM to a sweep in workers, SIGINT to all of its processes: every job saves, exit 75,
    and the same command does what is left and nothing again.
    """
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    grid = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=1,2,3", "name=s")
    long = ("trainer=cpu", "max_vectors=200000", "callbacks=default")
    command = [sys.executable, TRAIN, "-m", *tiny(few_texts), *long, *grid]
    command.append("hydra.sweep.dir=sweep")
    sweep = tmp_path / "sweep"
    with started(command, tmp_path) as process:
        histories = [sweep / job / "metrics.csv" for job in "01"]
        wait_until(lambda: all(path.exists() for path in histories), 120)
        strike = (os.killpg, signal.SIGINT) if group else (os.kill, signal.SIGTERM)
        strike[0](process.pid, strike[1])
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert said.count("go on with: python train.py run=") == 2
    newest = [committed(sweep / job / "checkpoints")[0].step for job in "01"]
    assert not (sweep / "2" / "checkpoints").exists()
    done = run(command, tmp_path)
    assert done.returncode == 0, done.stdout
    assert all(f"Going on from step {step} of" in done.stdout for step in newest)
    figures = [(sweep / job / "metrics.json").read_text() for job in "012"]
    again = run(command, tmp_path)
    assert again.returncode == 0, again.stdout
    assert again.stdout.count("This run has finished") == 3
    assert figures == [(sweep / job / "metrics.json").read_text() for job in "012"]


@pytest.mark.slow
def test_optuna_searches_for_the_lowest_fvu(tmp_path: Path, few_texts: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    search = (
        *("hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1"),
        *("hydra.sweeper.sampler.seed=0", "update.lr=tag(log,interval(1e-4,1e-1))"),
    )
    done = run([sys.executable, TRAIN, "-m", *search, *tiny(few_texts), "trainer=cpu"], tmp_path)
    assert done.returncode == 0, done.stdout
    (sweep,) = (tmp_path / "outputs" / "dictionary").iterdir()
    tried = [read_run(sweep / str(job), processes=1, at_most=1)["val/fvu"] for job in range(3)]
    best = OmegaConf.load(sweep / "optimization_results.yaml")
    assert best.best_value == pytest.approx(min(tried))
