"""Several dictionaries on one stream: what ``variants`` asks for, as one config for each.

Imports Hydra and OmegaConf only.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dictlearn.configuration import config_dir, explain, flat_keys, groups
from dictlearn.errors import InputError, nearest, number

VARY = ("dictionary", "prox", "inference", "loss", "update", "seed")
LONGEST = 80
SEARCH = "hydra.searchpath"
EXAMPLE = "variants={prox.k:[16,32]} or variants=[{prox.k:16},{prox.k:32,seed:1}]"

Change = dict[str, Any]


def place_of(run_dir: Path, name: str) -> Path:
    """Return where the artefact and the figures of a variant are; of an only dictionary, `""`."""
    return run_dir / "variants" / name if name else run_dir


def named(name: str, key: str) -> str:
    """Return the key of a figure of a variant in ``metrics.json``; as it is without a name."""
    return f"{name}/{key}" if name else key


def own_figures(figures: dict[str, float], name: str) -> dict[str, float]:
    """Return the figures of a variant by their plain names, with those of the run."""
    if not name:
        return figures
    run = {key: value for key, value in figures.items() if key.startswith(("train/", "seconds/"))}
    mine = {key: value for key, value in figures.items() if key.startswith(f"{name}/")}
    return run | {key.removeprefix(f"{name}/"): value for key, value in mine.items()}


def variant_configs(config: DictConfig) -> dict[str, DictConfig]:
    """Return the config of every variant by its name; none where there is one dictionary only.

    A mapping is a grid, every value of a key with every value of the others; a list has one
    mapping for every variant. What a key is set to is an option of a group or a value.

    Args:
        config: ``conf/train.yaml``, composed.

    Raises:
        InputError: a key does not exist or may not vary, or a variant is there twice.
    """
    made: dict[str, DictConfig] = {}
    changes: list[Change] = []
    for change in _changes(OmegaConf.to_container(config)["variants"]):  # type: ignore[index, call-overload]
        if change in changes:
            raise InputError(f"variants: {_said(change)} is there twice; leave one of them out.")
        changes.append(change)
        made[_name(change, made)] = _changed(config, change)
    return made


def branch_of(config: DictConfig) -> float:
    """Return the share of the run for which the variants learn as one; see `DictionaryEnsemble`.

    Args:
        config: ``conf/train.yaml``, composed.

    Raises:
        InputError: it is no share that leaves a rest, or there are no variants that can part: they
            have the start, the rates and the encoder in common.
    """
    asked, share = OmegaConf.to_container(config)["variants"], config.branch_at  # type: ignore[index, call-overload]
    if share is None or number("branch_at", share, 0.0, 1.0) == 0:
        return 0.0
    if share == 1:
        raise InputError("branch_at=1 leaves the variants no step of their own: choose less.")
    if not asked:
        raise InputError(f"branch_at={share} needs variants that part there: write {EXAMPLE}.")
    for key in itertools.chain.from_iterable(_changes(asked)):
        if not key.startswith("prox.") or key == "prox.sampled":
            raise InputError(
                f"branch_at={share}: variants that begin as one differ only in what is below prox, "
                f"and these in {key}: leave it out, or set branch_at=null."
            )
    return float(share)


def _changes(asked: Any) -> Iterator[Change]:
    if isinstance(asked, Mapping):
        columns = [value if isinstance(value, list) else [value] for value in asked.values()]
        if not all(columns):
            raise InputError(f"variants={asked} lists no value for a key: write {EXAMPLE}.")
        rows = itertools.product(*columns) if asked else ()
        yield from (dict(zip(map(str, asked), row, strict=True)) for row in rows)
    elif isinstance(asked, list):
        for number, entry in enumerate(asked):
            if not isinstance(entry, Mapping):
                raise InputError(f"variants[{number}]={entry} is no mapping: write {EXAMPLE}.")
            yield {str(key): value for key, value in entry.items()}
    elif asked is not None:
        raise InputError(f"variants={asked} is neither a mapping nor a list: write {EXAMPLE}.")


def _changed(config: DictConfig, change: Change) -> DictConfig:
    """Return the config of the run with one variant's options, as a run of its own would have."""
    options = {key: value for key, value in change.items() if key in groups()}
    made = _composed(options) if _known(config, options) and options else copy.deepcopy(config)
    _known(made, change)
    for key, value in change.items():
        if key not in options:
            OmegaConf.update(made, key, value)
    made.variants = made.branch_at = None
    return made


def _known(config: DictConfig, change: Change) -> bool:
    """Refuse what may not vary and what does not exist."""
    known = [
        key
        for key in flat_keys(OmegaConf.to_container(config, resolve=False))
        if key.partition(".")[0] in VARY
    ]
    for key, value in change.items():
        if key.partition(".")[0] not in VARY:
            raise InputError(
                f"variants: {key} cannot vary, because all variants share one stream; what can is "
                f"seed and what is below {', '.join(VARY[:-1])}.{nearest(key, known)}"
            )
        if key not in known:
            raise InputError(f"variants: There is no option '{key}'.{nearest(key, known)}")
        if key in groups() and not isinstance(value, str):
            raise InputError(f"variants: {key} must name an option of the group, not {value}.")
    return True


def _composed(options: Change) -> DictConfig:
    """Compose the config of this launch anew with other options of its groups."""
    given: list[str] = []
    place, primary = config_dir(), "train"
    if HydraConfig.initialized():
        hydra = HydraConfig.get()
        sources = {entry.provider: entry.path for entry in hydra.runtime.config_sources}
        place, primary = sources.get("main", place), str(hydra.job.config_name)
        given = [*hydra.overrides.task, *(key for key in hydra.overrides.hydra if SEARCH in key)]
        beside = sources.get("command-line")  # of --config-dir; the primary config may lie in it
        if beside is not None:
            if (Path(beside) / primary).with_suffix(".yaml").is_file():
                place, beside = beside, place
            if not any(SEARCH in key for key in given):
                given.append(f"{SEARCH}=['file://{beside}']")
    chosen = [f"{key}={value}" for key, value in options.items()]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(place, version_base="1.3"):
            return compose(primary, overrides=[*given, *chosen])
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(f"variant {_said(options)}: {explain(error, 'train', chosen)}") from None


def _name(change: Change, taken: Mapping[str, object]) -> str:
    """Return a short name that a folder can have, e.g. ``k32_seed1``."""
    short = "_".join(_part(key, value) for key, value in change.items())[:LONGEST] or "base"
    if short not in taken:
        return short
    return next(name for n in itertools.count(2) if (name := f"{short}-{n}") not in taken)


def _part(key: str, value: object) -> str:
    leaf = key.rpartition(".")[2].strip("_")
    text = re.sub(r"[^\w.+-]+", "-", str(value)).strip("-")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return leaf + text
    return f"{leaf}-{text}" if "." in key else text


def _said(change: Change) -> str:
    return " ".join(f"{key}={value}" for key, value in change.items())
