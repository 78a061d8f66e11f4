"""From text to a stream of hidden states: extraction, mixing, statistics, the data module.

Names load on first use, so that checking a configuration needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dictlearn.hidden_states.batch import HiddenStates
    from dictlearn.hidden_states.cache.datamodule import CachedDataModule
    from dictlearn.hidden_states.datamodule import HiddenStateDataModule
    from dictlearn.hidden_states.extraction import Extractor, Frame
    from dictlearn.hidden_states.module import DataModule
    from dictlearn.hidden_states.options import CachedOptions, StreamOptions
    from dictlearn.hidden_states.statistics import Normalization, Statistics

__all__ = [
    "CachedDataModule",
    "CachedOptions",
    "DataModule",
    "Extractor",
    "Frame",
    "HiddenStateDataModule",
    "HiddenStates",
    "Normalization",
    "Statistics",
    "StreamOptions",
]

_MODULES = {
    "CachedDataModule": "cache.datamodule",
    "CachedOptions": "options",
    "DataModule": "module",
    "Extractor": "extraction",
    "Frame": "extraction",
    "HiddenStateDataModule": "datamodule",
    "HiddenStates": "batch",
    "Normalization": "statistics",
    "Statistics": "statistics",
    "StreamOptions": "options",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
