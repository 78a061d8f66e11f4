"""NaN and infinity in hidden states or gradients: named, counted, and never in the dictionary."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from dictlearn import cli
from dictlearn.callbacks.checkpoints import RunCheckpoints
from dictlearn.errors import InputError
from dictlearn.learner import DictionaryLearner
from dictlearn.storage.committed import committed
from dictlearn.transformer import FrozenTransformer
from dictlearn.update import (
    FirstAdam,
    Frozen,
    HessianDiagonalRule,
    Mairal,
    Phased,
    Signum,
    ThenHessianDiagonal,
)
from dictlearn.update.optimizers import DictionaryOptimizer
from tests.integration.test_mistakes import FAST
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
        self._before = [entry.detach().clone() for entry in module.parameters()]

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if trainer.global_step in self.steps:
            gradient = learned(module).dictionary.atoms.grad
            assert gradient is not None
            gradient[3, 5] = math.nan

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        pairs = zip(self._before, module.parameters(), strict=True)
        self.unchanged.append(all(torch.equal(before, after) for before, after in pairs))


PHASED = Phased(FirstAdam(warmup_vectors=0), ThenHessianDiagonal())
RULES: dict[str, dict[str, Any]] = {
    "adam": {},
    "signum": {"update": Signum(warmup_vectors=0)},
    "hessian_diagonal": {**exact(), "update": HessianDiagonalRule()},
    "mairal": {**exact(), "update": Mairal()},
    "phased": {"update": PHASED},
    "phased, exact": {**exact(), "update": PHASED},
    "frozen": {"update": Frozen(warmup_vectors=0)},
}


@pytest.mark.parametrize("rule", RULES)
def test_a_step_with_a_bad_gradient_is_skipped(
    rule: str,
    minilm_folder: Path,
    text_folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """B2 a gradient that is not finite: the step is skipped and counted, parameter and step are
    named, nothing is ruined, and neither is any checkpoint.
    """
    caplog.set_level(logging.WARNING)
    data = small_data(minilm_folder, text_folder, tmp_path, steps=STEPS)
    learner, bad = small_learner(data, **RULES[rule]), BadGradient((2, 5))
    saver = RunCheckpoints(tmp_path, every_steps=1, every_minutes=None, keep=99, monitor=None)
    trainer = small_trainer(tmp_path, [bad, saver], enable_checkpointing=True)
    trainer.fit(learner, datamodule=data)
    assert bad.unchanged == [step in (2, 5) for step in range(STEPS)]
    (optimizer,) = trainer.optimizers
    assert isinstance(optimizer, DictionaryOptimizer)
    assert optimizer.skipped == 2
    said = "At step {} the gradient of dictionary.atoms is not finite: skipped."
    assert [line for line in caplog.messages if "gradient" in line] == [
        said.format(step) for step in (2, 5)
    ]
    saved = committed(tmp_path / "checkpoints")
    assert [entry.step for entry in saved] == [*range(STEPS, 0, -1)]
    for entry in saved:
        assert not_finite(torch.load(entry.path, weights_only=True)) == []


def not_finite(value: Any, where: str = "") -> list[str]:
    """The places of a checkpoint, at any depth, whose tensor or number is not finite."""
    if isinstance(value, dict):
        return [place for key in value for place in not_finite(value[key], f"{where}/{key}")]
    if isinstance(value, list | tuple):
        return [place for entry in value for place in not_finite(entry, f"{where}/-")]
    tensor = value if isinstance(value, Tensor) else torch.tensor(value if is_number(value) else 0)
    return [] if bool(tensor.isfinite().all()) else [where]


def is_number(value: Any) -> bool:
    return isinstance(value, float)


@pytest.mark.run
def test_skipped_steps_are_among_the_figures(
    tmp_path: Path, text_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B2 a loss that is not finite: the skipped step is counted in metrics.json."""
    step = DictionaryLearner.training_step

    def spoiled(self: DictionaryLearner, batch: Any, batch_idx: int) -> Tensor:
        loss = step(self, batch, batch_idx)
        return loss * math.nan if batch_idx == 1 else loss

    monkeypatch.setattr(DictionaryLearner, "training_step", spoiled)
    monkeypatch.chdir(tmp_path)
    options = [*FAST, "text=local", f"text.path={text_folder}", "inference=unrolled", "prox=topk"]
    options += ["prox.k=8", "text.max_documents=8", "hidden_states.statistics_tokens=512"]
    options += ["hidden_states.batch_size=128", "hidden_states.validation_vectors=1024"]
    cli.train([*options, "max_vectors=512", "hydra.run.dir=run"])
    figures = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert figures["train/skipped_steps"] == 1
    assert all(math.isfinite(value) for value in figures.values())


def test_bad_gradients_without_end_stop_the_run(
    minilm_folder: Path, text_folder: Path, tmp_path: Path
) -> None:
    """B2 ten skipped steps in a row: the run ends with a sentence, its atoms finite."""
    data = small_data(minilm_folder, text_folder, tmp_path, steps=20)
    learner: DictionaryLearner = small_learner(data)
    said = r"gradients of 10 steps in a row .*at step 12 that of dictionary.atoms: lower update\.lr"
    with pytest.raises(InputError, match=said):
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
