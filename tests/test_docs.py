"""The documentation: every command of training in it composes, and every key in it is one."""

import itertools
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from dictlearn import cli
from dictlearn.configuration import config_dir
from dictlearn.loggers.weights_and_biases import WandbRunLogger

ROOT = Path(config_dir()).parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PLUGINS = {
    "hydra/launcher=joblib": "hydra_plugins.hydra_joblib_launcher",
    "hydra/launcher=submitit_slurm": "hydra_plugins.hydra_submitit_launcher",
    "hydra/sweeper=optuna": "hydra_plugins.hydra_optuna_sweeper",
}


def commands() -> Iterator[tuple[str, list[str]]]:
    """Yield the program and the arguments of the indented commands of all pages."""
    for page in PAGES:
        for line in page.read_text(encoding="utf-8").splitlines():
            found = re.match(r"    .*?\b(train\.py|train\.sbatch|dictlearn train) (.*)", line)
            if found and "[" not in found[2]:
                yield found[1], shlex.split(found[2], comments=True)


@pytest.mark.parametrize(("program", "arguments"), list(commands()))
def test_a_command_of_the_documentation_composes(
    program: str, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [*arguments, "trainer=slurm"] if program == "train.sbatch" else arguments
    given = [word for word in given if not word.startswith("run=")]  # a directory on their disk
    plugins = [PLUGINS[argument] for argument in given if argument in PLUGINS]
    for name in plugins:
        pytest.importorskip(name)
    if plugins:  # Composed and not run: what is searched is the plugin's matter.
        fixed = [word for word in given if word != "-m" and not re.search(r"[,(]", word)]
        with initialize_config_dir(config_dir(), version_base="1.3"):
            config = compose("train", overrides=fixed, return_hydra_config=True)
        known = compose_keys(config)
        assert {word.partition("=")[0] for word in given if "." in word} <= known
        return
    jobs: list[DictConfig] = []
    given += [] if any(word.startswith("hydra.run.dir") for word in given) else ["hydra.run.dir=x"]
    monkeypatch.setattr(sys, "argv", ["train.py"])
    cli._launch(jobs.append, "train", given)
    values = [word.partition("=")[2].split(",") for word in given if "-m" in given]
    assert len(jobs) == len(list(itertools.product(*values)))
    for job in jobs:
        OmegaConf.to_container(job.trainer, resolve=True)


def compose_keys(config: DictConfig) -> set[str]:
    """Return the dotted names of all keys of a config, Hydra's own among them."""
    from dictlearn.configuration import flat_keys

    return set(flat_keys(OmegaConf.to_container(config, resolve=False)))


def test_there_are_commands_for_every_way_to_launch() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert len(list(commands())) > 15
    for way in ("trainer=gpu", "--nnodes 2", "sbatch", "train.py -m", *PLUGINS):
        assert way in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_sweep_of_weights_and_biases_searches_real_keys_for_a_real_figure() -> None:
    sweep = yaml.safe_load((ROOT / "docs" / "wandb_sweep.yaml").read_text(encoding="utf-8"))
    given = [word for word in sweep["command"] if "=" in word and not word.startswith("$")]
    lowest = {
        key: about["values"][0] if "values" in about else about["min"]
        for key, about in sweep["parameters"].items()
    }
    with initialize_config_dir(config_dir(), version_base="1.3"):
        config = compose(
            "train", overrides=[*given, *(f"{key}={value}" for key, value in lowest.items())]
        )
    for key, value in lowest.items():
        assert OmegaConf.select(config, key) == value
    assert sweep["command"][-1] == "${args_no_hyphens}"
    assert sweep["metric"] == {"name": "val/fvu", "goal": "minimize"}
    assert (ROOT / sweep["program"]).is_file()
    assert config.logger.wandb._target_.endswith(f".{WandbRunLogger.__name__}")
