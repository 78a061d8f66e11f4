"""The options that a run began with outlive every start that was refused."""

import json
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from dictlearn import cli
from dictlearn.begun import (
    config_of,
    figures_of_the_same,
    going_on,
    keep_options,
    options_of_this_start,
    put_options_back,
)

OPTIONS = {"resume": "auto", "name": "n", "update": {"lr": 1e-5}, "place": "${name}/x"}


def started(run: Path, **others: object) -> str:
    """Write what Hydra writes of a start; return what is to be kept of it."""
    (run / ".hydra").mkdir(exist_ok=True)
    config, said = {**OPTIONS, **others}, [f"{key}={value}" for key, value in others.items()]
    (run / ".hydra" / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    (run / ".hydra" / "overrides.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(said)))
    (run / ".hydra" / "hydra.yaml").write_text("hydra: {runtime: {choices: {update: adam}}}")
    kept = {"overrides": said, "choices": {"update": "adam"}, "config": config}
    return OmegaConf.to_yaml(OmegaConf.create(kept))


def finished(run: Path) -> None:
    (run / "metrics.json").write_text(json.dumps({"val/fvu": 0.25}))


def test_a_run_goes_on_with_the_options_that_training_began_with(tmp_path: Path) -> None:
    """C12 a start with other options was refused or killed: `run=DIR resume=true` has the old."""
    line = [f"run={tmp_path}", "resume=true"]
    mine = started(tmp_path, seed=1)
    put_options_back(tmp_path)  # there are none
    assert going_on(line)[0] == "seed=1"
    started(tmp_path, seed=2)  # refused, while the first one was about to begin
    keep_options(tmp_path, mine)
    assert OmegaConf.load(tmp_path / ".hydra" / "overrides.yaml") == ["seed=1"]
    started(tmp_path, seed=3)
    assert going_on(line)[0] == "seed=1"
    kept = config_of(tmp_path)
    assert isinstance(kept, DictConfig)
    assert (kept.seed, kept.place) == (1, "n/x")
    put_options_back(tmp_path)
    assert OmegaConf.load(tmp_path / ".hydra" / "overrides.yaml") == ["seed=1"]
    assert OmegaConf.load(tmp_path / ".hydra" / "config.yaml").seed == 1


def test_only_a_finished_run_of_the_same_options_has_figures(tmp_path: Path) -> None:
    """C12 a finished run is started again: only with the same options it is the same run."""
    config = OmegaConf.create(OPTIONS)
    keep_options(tmp_path, started(tmp_path))
    assert figures_of_the_same(tmp_path, config) is None
    finished(tmp_path)
    assert figures_of_the_same(tmp_path, config) == {"val/fvu": 0.25}
    assert figures_of_the_same(tmp_path, OmegaConf.create({**OPTIONS, "name": "m"})) is None
    newer = [OmegaConf.create({**OPTIONS, "branch_at": at}) for at in (None, 0.5)]
    assert [figures_of_the_same(tmp_path, one) for one in newer] == [{"val/fvu": 0.25}, None]
    assert figures_of_the_same(tmp_path, OmegaConf.create({**OPTIONS, "resume": True})) is None
    keep_options(tmp_path, started(tmp_path, resume=True))  # it goes on by hand
    assert not (tmp_path / "metrics.json").exists()
    assert figures_of_the_same(tmp_path, config) is None
    finished(tmp_path)
    assert figures_of_the_same(tmp_path, config) == {"val/fvu": 0.25}


def test_a_secret_is_kept_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """E7 an option refers to a secret of the environment: what is kept refers to it, too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MY_PASSWORD", "planted")
    said: list[str] = []
    given = ["name='${oc.env:MY_PASSWORD}'", "hydra.run.dir=out"]
    cli._launch(lambda config: said.append(options_of_this_start(config)), "train", given)
    assert "planted" not in said[0]
    assert said[0].count("${oc.env:MY_PASSWORD}") == 2
