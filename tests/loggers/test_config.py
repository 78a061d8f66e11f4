import shutil
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from dictlearn.configuration import build, config_dir
from dictlearn.loggers.csv import CsvLogger
from dictlearn.loggers.tensorboard import TensorBoardRunLogger
from dictlearn.loggers.weights_and_biases import WandbRunLogger


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """A config of nothing but the loggers."""
    folder = tmp_path / "conf"
    shutil.copytree(Path(config_dir()) / "logger", folder / "logger")
    (folder / "train.yaml").write_text("defaults: [_self_, {logger: csv}]\nname: tiny\n")
    return folder


def composed(conf: Path, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(conf), version_base="1.3"):
        return compose("train", list(overrides))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ([], ["csv"]),
        (["logger=csv"], ["csv"]),
        (["logger=none"], []),
        (["logger=wandb"], ["csv", "wandb"]),
        (["logger=tensorboard"], ["csv", "tensorboard"]),
        (["logger=[wandb]"], ["csv", "wandb"]),
        (["logger=[csv,wandb]"], ["csv", "wandb"]),
        (["logger=[wandb,csv]"], ["csv", "wandb"]),
        (["logger=[wandb,tensorboard]"], ["csv", "wandb", "tensorboard"]),
        (["logger=wandb", "logger.wandb.mode=offline"], ["csv", "wandb"]),
    ],
)
def test_one_logger_or_several_compose_and_the_local_history_stays(
    override: list[str], expected: list[str], conf: Path
) -> None:
    assert list(composed(conf, *override).logger) == expected


def test_every_logger_is_built_from_its_config(conf: Path, tmp_path: Path) -> None:
    folders = [f"logger.{key}.save_dir={tmp_path}" for key in ("csv", "wandb", "tensorboard")]
    config = composed(conf, "logger=[wandb,tensorboard]", "logger.wandb.tags=[a,b]", *folders)
    loggers: list[Any] = [build(node) for node in config.logger.values()]
    assert [type(logger) for logger in loggers] == [CsvLogger, WandbRunLogger, TensorBoardRunLogger]
    assert [Path(logger.save_dir) for logger in loggers] == 3 * [tmp_path]
    assert [path.name for path in tmp_path.iterdir()] == ["conf"]
