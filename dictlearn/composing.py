"""What the config asks for, built: the learner (or those of several variants) and the stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from dictlearn.configuration import build, plain, redacted
from dictlearn.dictionary import Dictionary
from dictlearn.ensemble import DictionaryEnsemble, Variant
from dictlearn.errors import InputError, whole_number
from dictlearn.hidden_states import (
    CachedDataModule,
    CachedOptions,
    DataModule,
    HiddenStateDataModule,
)
from dictlearn.learner import DictionaryLearner
from dictlearn.storage.saved import load


def compose(config: DictConfig, values: dict[str, Any]) -> tuple[DictionaryLearner, DataModule]:
    """Build the learner and its stream; what is cheap comes first, so that a wrong value is told
    before a model is loaded.
    """  # noqa: D205
    parts = _parts(config)
    data = _stream(config)
    dictionary = new_dictionary(config, data.hidden_size)
    return DictionaryLearner(dictionary, **parts, config=values), data


def compose_several(
    config: DictConfig,
    values: dict[str, Any],
    variants: Mapping[str, DictConfig],
    branch_at: float = 0.0,
) -> tuple[DictionaryEnsemble, DataModule]:
    """Build the learners of all variants, by name, and the stream that they share."""
    parts, made = {}, {}
    for name, variant in variants.items():
        with told_of(name):
            parts[name] = _parts(variant)
    data = _stream(config)
    for name, variant in variants.items():
        with told_of(name):
            dictionary = new_dictionary(variant, data.hidden_size)
            about = redacted(plain(variant))
            made[name] = Variant(dictionary, **parts[name], config=about)
    return DictionaryEnsemble(made, values, branch_at), data


@contextmanager
def told_of(name: str) -> Iterator[None]:
    """Say which variant a mistake is in, if there are several."""
    try:
        yield
    except InputError as error:
        raise InputError(f"variant {name}: {error}" if name else str(error)) from error


def _parts(config: DictConfig) -> dict[str, Any]:
    """Build what tells mistakes at once."""
    max_vectors = whole_number("max_vectors", config.max_vectors)
    parts = {name: build(config[name]) for name in ("prox", "inference", "update", "loss")}
    return {**parts, "max_vectors": max_vectors, "seed": whole_number("seed", config.seed, 0)}


def _stream(config: DictConfig) -> DataModule:
    """Build the stream: of a transformer that reads a text, or of stored hidden states."""
    max_vectors = whole_number("max_vectors", config.max_vectors)
    options = build(config["hidden_states"])
    if isinstance(options, CachedOptions):
        return CachedDataModule(options, max_vectors, config.seed)
    text = build(config["text"])
    return HiddenStateDataModule(
        build(config["transformer"]),
        text,
        options,
        max_vectors=max_vectors,
        seed=config.seed,
        data_dir=Path(config.data_dir),
    )


def new_dictionary(config: DictConfig, width: int) -> Dictionary:
    """Build the dictionary; with a path it starts from one that is there already."""
    dictionary: Dictionary = build(config["dictionary"], width=width, seed=config.seed)
    if dictionary.path is not None:
        dictionary.start_from(load(dictionary.path).dictionary)
    return dictionary
