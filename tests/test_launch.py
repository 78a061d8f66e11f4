"""Who launched us: ranks, and one run directory for every launch, also started again."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from dictlearn import cli, launch
from dictlearn.configuration import config_dir
from dictlearn.errors import InputError
from dictlearn.launch import advice, is_main_process, launch_id, launched, run_directory, world

STAMP = r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d"
UUID = "cab64388-3f0e-4c4c-9d3b-0f1e2d3c4b5a"
BATCH = {"SLURM_JOB_ID": "42", "SLURM_JOB_NAME": "train", "ENVIRONMENT": "BATCH"}
STEP = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}
PTY = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PTY_PORT": "3"}
SHELL = {"SLURM_JOB_ID": "42", "SLURM_JOB_NAME": "bash"}
ELASTIC = {"TORCHELASTIC_RUN_ID": UUID, "WORLD_SIZE": "8", "GROUP_WORLD_SIZE": "2"}

Launch = Callable[[dict[str, str]], None]


@pytest.fixture
def launch_as(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Launch:
    """Sets the environment that a launcher would set, in an empty working directory."""

    def be(environment: dict[str, str]) -> None:
        for key in [*os.environ]:
            if key.startswith(("SLURM_", "TORCHELASTIC_", "GROUP_")) or key in launch.RANKS:
                monkeypatch.delenv(key)
        for key in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "ENVIRONMENT"):
            monkeypatch.delenv(key, raising=False)
        for key, value in environment.items():
            monkeypatch.setenv(key, value)

    monkeypatch.chdir(tmp_path)
    be({})
    return be


@pytest.mark.parametrize(
    ("environment", "main"),
    [
        ({}, True),
        ({"LOCAL_RANK": "0", "RANK": "0"}, True),
        ({"LOCAL_RANK": "1"}, False),
        ({"LOCAL_RANK": "0", "RANK": "4"}, False),
        ({"NODE_RANK": "1"}, False),
        ({"SLURM_PROCID": "2"}, False),
        # torchrun gives rank 0 to the node that comes first, which need not be SLURM's first.
        ({**ELASTIC, "RANK": "0", "LOCAL_RANK": "0", "SLURM_PROCID": "1"}, True),
        ({**ELASTIC, "RANK": "4", "LOCAL_RANK": "0", "SLURM_PROCID": "0"}, False),
    ],
)
def test_launchers_say_in_the_environment_which_process_is_the_main_one(
    environment: dict[str, str], main: bool, launch_as: Launch
) -> None:
    launch_as(environment)
    assert is_main_process() is main


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({}, None),
        (BATCH, "slurm-42"),
        ({**BATCH, **STEP}, "slurm-42"),
        ({**BATCH, **STEP, "SLURM_RESTART_COUNT": "2", "SLURM_STEP_ID": "5"}, "slurm-42"),
        ({**BATCH, "SLURM_ARRAY_JOB_ID": "40", "SLURM_ARRAY_TASK_ID": "7"}, "slurm-40_7"),
        ({**BATCH, **ELASTIC}, "slurm-42"),
        # srun from a login node, and steps of an allocation: all their tasks are one launch
        ({"SLURM_JOB_ID": "42", "SLURM_JOB_NAME": "python", **STEP}, "slurm-42.0"),
        ({**SHELL, **STEP, "SLURM_STEP_ID": "3"}, "slurm-42.3"),
        # shells on a node: what is typed there has nothing but the job in common
        ({**SHELL, **PTY}, None),
        ({"SLURM_JOB_ID": "42", "SLURM_JOB_NAME": "my name"}, None),
        ({**SHELL, **PTY, **ELASTIC}, "elastic-cab64388"),
        (ELASTIC, "elastic-cab64388"),
        ({"TORCHELASTIC_RUN_ID": "my/run ..7"}, "elastic-my-run-..7"),
        ({**ELASTIC, "TORCHELASTIC_RUN_ID": "none"}, None),
    ],
)
def test_a_launch_has_one_name(
    environment: dict[str, str], name: str | None, launch_as: Launch
) -> None:
    launch_as(environment)
    assert launch_id() == name


@pytest.mark.parametrize(
    ("environment", "devices", "nodes"),
    [
        ({}, "here", "here"),
        (ELASTIC, 4, 2),
        ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "3"}, 3, 1),
        ({**BATCH, **STEP, "SLURM_NTASKS": "16", "SLURM_NNODES": "4"}, 4, 4),
        ({**SHELL, "SLURM_NTASKS": "2"}, "here", "here"),
        ({**BATCH, "SLURM_NTASKS": "1", "SLURM_NNODES": "1"}, "here", "here"),
    ],
)
def test_presets_take_devices_and_nodes_from_the_launcher(
    environment: dict[str, str], devices: object, nodes: object, launch_as: Launch
) -> None:
    launch_as(environment)
    assert (launched("devices", "here"), launched("nodes", "here")) == (devices, nodes)
    assert (world() is None) == (devices == "here")


WRAPPED = """
import os, subprocess, sys
if len(sys.argv) == 1:  # the agent: two ranks, one of them behind a shell, and both again
    rank = [sys.executable, __file__, "rank"]
    shell = ["sh", "-c", f"{sys.executable} {__file__} rank; true"]
    for command in (rank, shell, rank):
        subprocess.run(command, env={**os.environ, "TORCHELASTIC_RUN_ID": "none"}, check=True)
else:
    from dictlearn.launch import launch_id
    sys.stdout.write(f"{launch_id()}\\n")
"""


def test_ranks_without_an_id_are_named_by_the_start_of_torchrun(
    tmp_path: Path, launch_as: Launch
) -> None:
    (tmp_path / "agent.py").write_text(WRAPPED)
    names = []
    for _ in range(2):
        before = time.time()
        said = subprocess.run(
            [sys.executable, "agent.py"],
            env={**os.environ, "PYTHONPATH": os.path.dirname(config_dir())},  # noqa: PTH120
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        assert len(said) == 3
        assert len(set(said)) == 1
        stamp, pid = re.fullmatch(rf"({STAMP})_(\d+)", said[0]).groups()  # type: ignore[union-attr]
        assert abs(time.mktime(time.strptime(stamp, launch.STAMP)) - before) < 5, pid
        names.append(said[0])
    assert names[0] != names[1]


def test_launches_of_the_same_second_get_a_directory_each(launch_as: Launch) -> None:
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: run_directory("outputs", "x"), range(24)))
    assert len(set(made)) == 24
    assert all(re.fullmatch(rf"outputs/x/{STAMP}(_\d+)?", path) for path in made)
    assert re.fullmatch(rf"outputs/x/{STAMP}", min(made))


def test_a_rank_that_cannot_know_the_directory_leaves_nothing(
    launch_as: Launch, tmp_path: Path
) -> None:
    code = "from dictlearn.launch import run_directory as r; print(r('outputs', 'x'), end='')"
    said = subprocess.run(
        [sys.executable, "-c", f"{code}; import os; assert os.path.isdir(r('outputs', 'x'))"],
        env={**os.environ, "NODE_RANK": "1", "PYTHONPATH": str(Path(config_dir()).parent)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert not said.startswith("outputs")
    assert not Path(said).exists()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "name",
    [
        "..",
        ".",
        "",
        None,
        "../x",
        "a/../../x",
        "/tmp/x",
        "a/../..",
        "../outputs",
        "x\0y",
        "x" * 300,
    ],
)
def test_a_name_that_leads_out_of_the_outputs_is_refused(
    name: object, launch_as: Launch, tmp_path: Path
) -> None:
    """E3 the name of a run leads out of the outputs: refused, nothing is made anywhere."""
    for environment in ({}, BATCH, {"LOCAL_RANK": "1"}):
        launch_as(environment)
        with pytest.raises(InputError, match="name="):
            run_directory("outputs", name)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["x", 7, "a/b", "..x", "größer", "a b"])
def test_other_names_are_folders_of_the_outputs(name: object, launch_as: Launch) -> None:
    launch_as(BATCH)
    assert run_directory("outputs", name) == f"outputs/{name}/slurm-42"


def test_outputs_that_cannot_be_written_are_a_mistake_of_one_sentence(
    launch_as: Launch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A7 the outputs cannot be written: one sentence."""
    (tmp_path / "outputs").write_text("a file")
    with pytest.raises(SystemExit) as stop:
        cli.train(["max_vectors=8"])
    assert stop.value.code == 2
    assert re.match(r"dictlearn: outputs/dictionary cannot be written.*\n$", capfd.readouterr().err)


@pytest.mark.parametrize("arguments", [["name=../../x"], ["-m", "name=../../x", "seed=1,2"]])
def test_the_command_line_tells_a_wrong_name(
    arguments: list[str], launch_as: Launch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """E3 name=../../x on the command line, also in a sweep: one sentence, nothing is made."""
    with pytest.raises(SystemExit) as stop:
        cli.train(arguments)
    assert stop.value.code == 2
    error = capfd.readouterr().err
    assert re.match(r"dictlearn: name='\.\./\.\./x' is no folder inside outputs", error)
    assert error.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_the_directory_is_chosen_once_however_often_it_is_asked_for(launch_as: Launch) -> None:
    with initialize_config_dir(config_dir(), version_base="1.3"):
        config = compose("train", return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    first = OmegaConf.select(config, "hydra.run.dir")
    assert HydraConfig.get().run.dir == first
    assert [str(path) for path in Path("outputs").glob("*/*")] == [first]


@pytest.mark.parametrize(
    ("environment", "nodes", "overrides", "told"),
    [
        ({}, 1, [], False),
        ({}, 2, [], True),
        ({"NODE_RANK": "1"}, 2, [], False),
        ({}, 2, ["hydra.run.dir=/shared/run"], False),
        (ELASTIC, 2, [], False),
        ({**ELASTIC, "TORCHELASTIC_RUN_ID": "none"}, 2, [], True),
        (BATCH, 2, [], False),
    ],
)
def test_a_launch_that_cannot_be_resumed_is_told_how_it_could(
    environment: dict[str, str], nodes: int, overrides: list[str], told: bool, launch_as: Launch
) -> None:
    launch_as(environment)
    assert ("--rdzv-id" in (advice(nodes, overrides) or "")) is told


def test_a_directory_that_another_launch_writes_to_is_refused(
    launch_as: Launch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A6 two launches write to one run directory: the second is refused in one sentence."""
    code = (
        "import sys; from pathlib import Path; from dictlearn.launch import only_writer\n"
        "with only_writer(Path('run')): print('held', flush=True); sys.stdin.read()"
    )
    (tmp_path / "run").mkdir()
    other = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(Path(config_dir()).parent)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == b"held\n"
            with pytest.raises(SystemExit):
                cli.train(["hydra.run.dir=run", "max_vectors=0"])
        finally:
            other.kill()
    assert "Another process is writing to" in capfd.readouterr().err
    assert (tmp_path / "run").is_dir()
    with launch.only_writer(tmp_path / "run"):  # let go by the system with the one that was killed
        pass
