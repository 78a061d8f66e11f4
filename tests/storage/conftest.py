"""Dictionaries of a few training steps, each made once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dictlearn.hidden_states import HiddenStates
from dictlearn.inference import Fista, Iterative
from dictlearn.prox import Soft
from dictlearn.storage.saved import load
from tests.small_run import save, small_data, small_learner, small_trainer
from tests.storage.made import Made, Make


@pytest.fixture(scope="session")
def make(minilm_folder: Path, text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Train for a few steps and save; the same arguments give the same dictionary."""
    place = tmp_path_factory.mktemp("trained")
    known: dict[str, Made] = {}

    def train(about: dict[str, Any] | None, bias: bool, options: dict[str, Any]) -> Made:
        data = small_data(minilm_folder, text_folder, place, steps=6, **options)
        parts: dict[str, Any] = {"bias": bias}
        if about is not None:
            parts |= {"prox": Soft(0.05), "inference": Iterative(Fista())}
        learner = small_learner(data, **parts)
        trainer = small_trainer(place, limit_val_batches=1.0)
        trainer.fit(learner, datamodule=data)
        trainer.validate(learner, datamodule=data, verbose=False)
        learner.eval()
        folder = tmp_path_factory.mktemp("run")
        save(folder / "dictionary", learner, data, **(about or {}))
        figures = {key: float(value) for key, value in trainer.callback_metrics.items()}
        return Made(learner, data, folder, load(folder), figures)

    def remembered(about: dict[str, Any] | None = None, bias: bool = False, **options: Any) -> Made:
        key = repr((about, bias, options))
        if key not in known:
            known[key] = train(about, bias, options)
        return known[key]

    return remembered


@pytest.fixture(scope="session")
def made(make: Make) -> Made:
    """With unrolled layers, a bias, and the normalisation of the default."""
    return make(bias=True)


@pytest.fixture(scope="session")
def rows(made: Made) -> HiddenStates:
    return made.data.sample(300)
