"""The options that a run began with: kept where no later start in its directory writes.

Hydra writes the options of every start into ``.hydra``, also of one that is refused. Imports
OmegaConf only.
"""

from __future__ import annotations

import json
import re
import shutil
from contextlib import suppress
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from dictlearn.errors import InputError

WRITTEN = ("overrides.yaml", "config.yaml", "hydra.yaml")
MACHINE = r"[+~]*trainer\.(accelerator|devices|num_nodes|strategy)\b"  # what trainer= says anew


def keep_options(run_dir: Path) -> None:
    """Keep the options of this start: training begins with them."""
    _copy(run_dir / ".hydra", _kept(run_dir))


def put_options_back(run_dir: Path) -> None:
    """Let ``.hydra`` hold the options that training last began with, if it ever did."""
    _copy(_kept(run_dir), run_dir / ".hydra")


def figures_of_the_same(run_dir: Path, config: DictConfig) -> dict[str, float] | None:
    """Return the figures of a run that has finished with the options of this start, else None.

    Args:
        run_dir: its directory.
        config: ``conf/train.yaml``, composed, as Hydra hands it to a job.
    """
    if config.resume != "auto":
        return None
    try:
        figures: dict[str, float] = json.loads((run_dir / "metrics.json").read_text())
        before = OmegaConf.load(_kept(run_dir) / "config.yaml")
    except (OSError, ValueError, YAMLError):
        return None
    now = OmegaConf.create(OmegaConf.to_yaml(config))
    before.resume = now.resume
    return figures if before == now else None


def going_on(arguments: list[str]) -> list[str]:
    """Turn ``run=DIR resume=true`` into the command line that the run began with, and its place.

    Options given beside them come last, and so take the place of the old ones; another trainer=
    that of all that the old one said of the machine.

    Raises:
        InputError: there is no run in DIR.
    """
    named = [argument for argument in arguments if argument.startswith("run=")]
    if not named:
        return arguments
    folder = Path(named[-1].removeprefix("run="))
    others = [argument for argument in arguments if argument not in named]
    if not any(argument.lower() == "resume=true" for argument in others):
        raise InputError(f"{named[-1]} goes on with the run there; say so with resume=true.")
    path = _options(folder) / "overrides.yaml"
    try:
        before = [str(entry) for entry in OmegaConf.load(path)]
    except (OSError, YAMLError):
        raise InputError(
            f"There is no run to go on with in {folder}: {path} is not there or damaged."
        ) from None
    for entry in before:
        # A run that comes from elsewhere is data: it must not choose what the launcher executes.
        if not re.match(r"[+~]*(?!hydra\b)\w", entry):
            raise InputError(
                f"{path} holds '{entry}', which no run writes there: remove that line."
            )
    before = [entry for entry in before if not entry.startswith("resume=")]
    if any(argument.startswith("trainer=") for argument in others):
        before = [entry for entry in before if not re.match(MACHINE, entry)]
        before += _chosen_by_trainer(folder, [*before, *others])
    place = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    return [*before, *others, f"hydra.run.dir='{place}'"]


def _chosen_by_trainer(folder: Path, given: list[str]) -> list[str]:
    """Return the choices of a run that its own trainer may have made, and another one would not."""
    with suppress(OSError, YAMLError, AttributeError, KeyError):
        choices = OmegaConf.load(_options(folder) / "hydra.yaml").hydra.runtime.choices
        return [
            f"{group}={choices[group]}"
            for group in ("inference", "update")
            if re.fullmatch(r"\w+", str(choices[group]))
            and not any(entry.startswith(f"{group}=") for entry in given)
        ]
    return []


def _kept(run_dir: Path) -> Path:
    return run_dir / ".hydra" / "begun"


def _options(run_dir: Path) -> Path:
    kept = _kept(run_dir)
    return kept if (kept / WRITTEN[0]).exists() else run_dir / ".hydra"


def _copy(source: Path, target: Path) -> None:
    if all((source / name).exists() for name in WRITTEN):
        target.mkdir(exist_ok=True)
        for name in reversed(WRITTEN):  # the one that is asked for last
            shutil.copyfile(source / name, target / name)
