"""NaN and infinity in hidden states or gradients: named, counted, and never in the dictionary."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from dictlearn.errors import InputError
from dictlearn.learner import DictionaryLearner
from dictlearn.transformer import FrozenTransformer
from dictlearn.update import HessianDiagonalRule, Mairal, Signum
from dictlearn.update.optimizers import DictionaryOptimizer
from tests.small_run import small_data, small_learner, small_trainer
from tests.watch import exact, learned

STEPS = 8


class Poisoned(FrozenTransformer):
    """Gives one number of one "the" of a forward pass in layer 3 that is not finite."""

    token, value = 1996, math.nan

    def hidden_states(self, ids: Tensor, mask: Tensor, layers: Any) -> Tensor:
        found = super().hidden_states(ids, mask, layers)
        places = (ids == self.token).nonzero()[:1]
        for row, column in places.tolist():
            found[list(layers).index(3), row, column, 17] = self.value
        return found


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_tokens_that_are_not_finite_are_left_out_and_named(
    value: float,
    minilm_folder: Path,
    text_folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """B1 NaN or infinity in a hidden state: the token is named, counted and left out."""
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(Poisoned, "value", value)
    data = small_data(minilm_folder, text_folder, tmp_path, steps=STEPS)
    data.transformer = Poisoned(str(minilm_folder), dtype="float32")
    learner = small_learner(data, inference=None)
    small_trainer(tmp_path, limit_val_batches=1.0).fit(learner, datamodule=data)
    assert data.non_finite
    said = [r.getMessage() for r in caplog.records if "is not finite in document" in r.getMessage()]
    assert len(said) > 0
    assert all("hidden_states[3]" in line and ".txt" in line for line in said)
    assert all(tensor.isfinite().all() for tensor in learner.state_dict().values())
    assert all(math.isfinite(figure) for figure in learner.held_out_figures.values())


def test_too_many_tokens_end_the_run(
    minilm_folder: Path, text_folder: Path, tmp_path: Path
) -> None:
    """B1 more such tokens than allowed: the run ends and names the last one."""
    data = small_data(minilm_folder, text_folder, tmp_path, steps=STEPS, max_non_finite=0)
    data.transformer = Poisoned(str(minilm_folder), dtype="float32")
    trainer = small_trainer(tmp_path, limit_val_batches=1.0)
    with pytest.raises(InputError, match=r"not finite in document .*max_non_finite=0"):
        trainer.fit(small_learner(data), datamodule=data)


def test_a_run_that_goes_on_remembers_what_was_not_finite(
    minilm_folder: Path, text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B1 tokens were not finite before a stop: they count towards the limit and in the figures."""
    monkeypatch.setattr(Poisoned, "token", -1)  # none, for now
    data = small_data(minilm_folder, text_folder, tmp_path, max_non_finite=1)
    data.transformer = Poisoned(str(minilm_folder), dtype="float32")
    data.prepare_data()
    data.setup()
    assert not data.non_finite
    data.load_state_dict({**data.state_dict(), "non_finite": [["train", 5, 7]]})
    assert data.non_finite == {("train", 5, 7)}
    assert data.state_dict()["non_finite"] == [["train", 5, 7]]
    monkeypatch.setattr(Poisoned, "token", 1996)
    with pytest.raises(InputError, match=r"with it \d+ tokens are not .*max_non_finite=1"):
        data.sample(2000)


class BadGradient(pl.Callback):
    """Spoils the gradient of one rank at some steps, and keeps the atoms before and after."""

    def __init__(self, steps: tuple[int, ...]) -> None:
        self.steps = steps
        self.unchanged: list[bool] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any
    ) -> None:
        self._before = learned(module).dictionary.atoms.detach().clone()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if trainer.global_step in self.steps:
            gradient = learned(module).dictionary.atoms.grad
            assert gradient is not None
            gradient[3, 5] = math.nan

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        atoms = learned(module).dictionary.atoms.detach()
        self.unchanged.append(torch.equal(self._before, atoms))


RULES: dict[str, dict[str, Any]] = {
    "adam": {},
    "signum": {"update": Signum(warmup_vectors=0)},
    "hessian_diagonal": {**exact(), "update": HessianDiagonalRule()},
    "mairal": {**exact(), "update": Mairal()},
}


@pytest.mark.parametrize("rule", RULES)
def test_a_step_with_a_bad_gradient_is_skipped(
    rule: str, minilm_folder: Path, text_folder: Path, tmp_path: Path
) -> None:
    """B2 a gradient that is not finite: the step is skipped and counted, nothing is ruined."""
    data = small_data(minilm_folder, text_folder, tmp_path, steps=STEPS)
    learner, bad = small_learner(data, **RULES[rule]), BadGradient((2, 5))
    trainer = small_trainer(tmp_path, [bad])
    trainer.fit(learner, datamodule=data)
    assert bad.unchanged == [step in (2, 5) for step in range(STEPS)]
    assert all(tensor.isfinite().all() for tensor in learner.state_dict().values())
    (optimizer,) = trainer.optimizers
    assert isinstance(optimizer, DictionaryOptimizer)
    assert optimizer.skipped == 2


def test_bad_gradients_without_end_stop_the_run(
    minilm_folder: Path, text_folder: Path, tmp_path: Path
) -> None:
    """B2 ten skipped steps in a row: the run ends with a sentence, its atoms finite."""
    data = small_data(minilm_folder, text_folder, tmp_path, steps=20)
    learner: DictionaryLearner = small_learner(data)
    with pytest.raises(InputError, match=r"gradients of 10 steps in a row .* update\.lr"):
        small_trainer(tmp_path, [BadGradient(tuple(range(3, 20)))]).fit(learner, datamodule=data)
    assert learner.dictionary.atoms.isfinite().all()


class BadOnOneRank(BadGradient):
    """Spoils a hidden state of rank 1 behind all guards, so that its loss is not finite."""

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, *given: Any
    ) -> None:
        super().on_train_batch_start(trainer, module, *given)
        if trainer.global_rank == 1 and trainer.global_step in self.steps:
            given[0].vectors[0, 0] = math.nan

    def on_before_optimizer_step(self, *args: Any) -> None:
        return

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert self.unchanged == [step in self.steps for step in range(STEPS)]
        assert learned(module).dictionary.atoms.isfinite().all()


def test_what_is_bad_on_one_rank_is_skipped_on_all(
    minilm_folder: Path, text_folder: Path, tmp_path: Path
) -> None:
    """B2 a NaN on one of two ranks: both skip the same step, and neither waits for the other."""
    data = small_data(minilm_folder, text_folder, tmp_path, steps=2 * STEPS, batch_size=64)
    trainer = small_trainer(
        tmp_path, [BadOnOneRank((1, 4))], devices=2, strategy="ddp_fork", log_every_n_steps=3
    )
    data.max_vectors = STEPS * 128
    trainer.fit(small_learner(data), datamodule=data)
