"""``dictlearn cache``: the hidden states of a text to disk. It composes text, model and cache."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import DictConfig

from dictlearn.configuration import build, known_keys, plain
from dictlearn.errors import InputError, choice, nearest
from dictlearn.hidden_states import HiddenStateDataModule, StreamOptions
from dictlearn.hidden_states.cache.building import build as build_cache
from dictlearn.hidden_states.options import Recipe
from dictlearn.noise import quiet

log = logging.getLogger(__name__)


def cache(config: DictConfig) -> None:
    """Make the cache that the config describes, or go on with it.

    Args:
        config: ``conf/cache.yaml``, composed.

    Raises:
        InputError: something in the config, the model or the text is wrong, the folder holds
            something else, or the disk cannot hold it.
        SystemExit: Ctrl-C was pressed.
    """
    try:
        _make(config)
    except KeyboardInterrupt:
        log.warning("Stopped: what is finished is kept, and the same command goes on.")
        raise SystemExit(os.EX_TEMPFAIL) from None


def _make(config: DictConfig) -> None:
    quiet()
    values = plain(config)
    names = known_keys("cache")
    for key in values:
        if key not in names:
            raise InputError(f"There is no option '{key}'.{nearest(key, names)}")
    device = _device(config.device)
    recipe = Recipe(
        config.path,
        config.dtype,
        config.max_vectors,
        config.max_validation_vectors,
        config.shard_vectors,
        config.seed,
    )
    options = build(config["hidden_states"])
    if not isinstance(options, StreamOptions):
        raise InputError("dictlearn cache makes hidden states: leave hidden_states=stream.")
    # Weights are made from the counts of the tokens when a run reads the cache.
    options = replace(options, token_weight_exponent=0.0, normalize_weights=False)
    text = build(config["text"])
    transformer = build(config["transformer"])
    data = HiddenStateDataModule(transformer, text, options, data_dir=Path(config.data_dir))
    build_cache(data, recipe, device)


def _device(name: str) -> torch.device:
    """Return the device of this process: launchers say in the environment which GPU is whose."""
    choice("device", name, ("auto", "cpu", "cuda"))
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cuda" and not count:
        raise InputError("device=cuda, but there is no CUDA device here: leave device=auto.")
    if name == "cpu" or not count:
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))
    return torch.device("cuda", local % count)
