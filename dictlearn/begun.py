"""The options that a run began with: kept where no later start in its directory writes.

Hydra writes the options of every start into ``.hydra``, also of one that is refused. Imports
Hydra's and OmegaConf's configs only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from dictlearn.errors import InputError
from dictlearn.storage.atomic import write_text

MACHINE = r"[+~]*trainer\.(accelerator|devices|num_nodes|strategy)\b"  # what trainer= says anew


def options_of_this_start(config: DictConfig) -> str:
    """Return what `keep_options` keeps; nothing where Hydra did not start this.

    Args:
        config: ``conf/train.yaml``, composed, as Hydra hands it to a job.
    """
    if not HydraConfig.initialized():
        return ""
    hydra = HydraConfig.get()
    parts = {
        "overrides": hydra.overrides.task,
        "choices": hydra.runtime.choices,
        "config": config,
    }
    # As they were given: what refers to the environment may be a secret.
    kept = {name: OmegaConf.to_container(part, resolve=False) for name, part in parts.items()}
    return OmegaConf.to_yaml(OmegaConf.create(kept))


def keep_options(run_dir: Path, options: str) -> None:
    """Keep the options with which training begins; what is finished of the run is so no more.

    Raises:
        OSError: they could not be written.
    """
    _kept(run_dir).parent.mkdir(exist_ok=True)
    write_text(_kept(run_dir), options)
    put_options_back(run_dir)  # another start may have been refused meanwhile
    for path in (run_dir / "metrics.json", *run_dir.glob("variants/*/metrics.json")):
        path.unlink(missing_ok=True)


def put_options_back(run_dir: Path) -> None:
    """Let ``.hydra`` hold the options that training last began with, if it ever did and can."""
    kept = _read(run_dir) or {}
    for name in ("overrides", "config") if kept else ():
        path = run_dir / ".hydra" / f"{name}.yaml"
        text = OmegaConf.to_yaml(OmegaConf.create(kept[name]))
        with suppress(OSError):
            if path.read_text(encoding="utf-8") != text:
                write_text(path, text)


def config_of(run_dir: Path) -> DictConfig | None:
    """Return the config with which training last began, or None where it is not kept."""
    kept = _read(run_dir)
    return None if kept is None else OmegaConf.create(kept["config"])


def figures_of_the_same(run_dir: Path, config: DictConfig) -> dict[str, float] | None:
    """Return the figures of a run that has finished with the options of this start, else None.

    Args:
        run_dir: its directory.
        config: ``conf/train.yaml``, composed, as Hydra hands it to a job.
    """
    before = config_of(run_dir)
    if config.resume != "auto" or before is None:
        return None
    try:
        figures = json.loads((run_dir / "metrics.json").read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(figures, dict):
        return None
    new = {"branch_at": None}  # a run of a version before this one was begun without it
    now = OmegaConf.merge(new, OmegaConf.create(OmegaConf.to_yaml(config)))
    return figures if OmegaConf.merge(new, before, {"resume": now.resume}) == now else None


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
    path, kept = _kept(folder), _read(folder)
    if kept is None:
        path = folder / ".hydra" / "overrides.yaml"
        kept = {"overrides": _loaded(path), "choices": _choices(folder)}
    if not isinstance(kept["overrides"], list):
        raise InputError(
            f"There is no run to go on with in {folder}: {path} is not there or damaged."
        )
    before = [str(entry) for entry in kept["overrides"]]
    for entry in before:
        # A run that comes from elsewhere is data: it must not choose what the launcher executes.
        if not re.match(r"[+~]*(?!hydra\b)\w", entry):
            raise InputError(
                f"{path} holds '{entry}', which no run writes there: remove that line."
            )
    before = [entry for entry in before if not entry.startswith("resume=")]
    if any(argument.startswith("trainer=") for argument in others):
        before = [entry for entry in before if not re.match(MACHINE, entry)]
        before += _chosen_by_trainer(kept["choices"], [*before, *others])
    place = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    return [*before, *others, f"hydra.run.dir='{place}'"]


def _chosen_by_trainer(choices: Any, given: list[str]) -> list[str]:
    """Return the choices of a run that its own trainer may have made, and another one would not."""
    return [
        f"{group}={choices[group]}"
        for group in ("inference", "update")
        if isinstance(choices, Mapping)
        and re.fullmatch(r"\w+", str(choices.get(group, "")))
        and not any(entry.startswith(f"{group}=") for entry in given)
    ]


def _choices(run_dir: Path) -> Any:
    """Return what Hydra wrote of the groups' choices in a run of a version before this one."""
    found = _loaded(run_dir / ".hydra" / "hydra.yaml")
    for key in ("hydra", "runtime", "choices"):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _kept(run_dir: Path) -> Path:
    return run_dir / ".hydra" / "begun.yaml"


def _read(run_dir: Path) -> dict[str, Any] | None:
    found = _loaded(_kept(run_dir))
    whole = isinstance(found, dict) and {"overrides", "choices", "config"} <= found.keys()
    return found if whole and isinstance(found["config"], dict) else None


def _loaded(path: Path) -> Any:
    try:
        return OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, ValueError, YAMLError):
        return None
