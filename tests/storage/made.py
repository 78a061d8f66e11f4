"""A dictionary in memory and the same one from disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from dictlearn.hidden_states import HiddenStateDataModule
from dictlearn.learner import DictionaryLearner
from dictlearn.storage.trained import TrainedDictionary

WIDTH, ATOMS = 384, 64
SOLVER: dict[str, Any] = {"_target_": "dictlearn.inference.Fista", "restart": True}
ITERATIVE: dict[str, Any] = {"_target_": "dictlearn.inference.Iterative", "solver": SOLVER}
FISTA: dict[str, Any] = {
    "prox": {"_target_": "dictlearn.prox.Soft", "lambda_": 0.05},
    "inference": ITERATIVE,
}


class Made(NamedTuple):
    """The learner, its stream, the run directory, what was loaded from it, held-out figures."""

    learner: DictionaryLearner
    data: HiddenStateDataModule
    folder: Path
    trained: TrainedDictionary
    figures: dict[str, float]


Make = Callable[..., Made]
