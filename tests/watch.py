"""Looks over the shoulder of a training run, step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor

from dictlearn.hidden_states import HiddenStateDataModule, HiddenStates
from dictlearn.inference import Fista, Iterative, Solution
from dictlearn.learner import DictionaryLearner
from dictlearn.prox import Soft
from tests.small_run import small_learner, small_trainer

HELD_OUT_KEYS = {
    *("fvu", "fvu_layer_0", "fvu_layer_3", "l0", "l0_layer_0", "l0_layer_3"),
    *("cosine", "objective", "duality_gap", "dead_fraction", "amortisation_gap"),
}


class Step(NamedTuple):
    """What one training step did.

    `x` and `solution` are what inference took and gave, `atoms` those before the step, `after`
    those after it, `gradients` by the name of the parameter.
    """

    batch: HiddenStates
    x: Tensor
    solution: Solution
    atoms: Tensor
    after: Tensor
    gradients: dict[str, Tensor]
    energy: Tensor | None
    idle: Tensor
    fvu: float


class Watch(pl.Callback):
    """Keeps what happens at every step."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        learner = learned(pl_module)
        learner.inference.register_forward_hook(self._inferred)

    def _inferred(self, module: Any, given: tuple[Any, ...], solution: Solution) -> None:
        self._x, self._solution = given[0].detach(), solution

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._atoms = learned(pl_module).dictionary.atoms.detach().clone()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        found = pl_module.named_parameters()
        self._gradients = {k: p.grad.clone() for k, p in found if p.grad is not None}

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: HiddenStates,
        batch_idx: int,
    ) -> None:
        learner = learned(pl_module)
        atoms = learner.dictionary.atoms
        energy = trainer.optimizers[0].state[atoms].get("energy")
        after, idle = atoms.detach().clone(), learner.idle.clone()
        step = Step(
            batch,
            self._x,
            self._solution,
            self._atoms,
            after,
            self._gradients,
            None if energy is None else energy.clone(),
            idle,
            float(trainer.callback_metrics["train/fvu"]),
        )
        self.steps.append(step)


def learned(module: pl.LightningModule) -> DictionaryLearner:
    assert isinstance(module, DictionaryLearner)
    return module


def exact() -> dict[str, Any]:
    return {"prox": Soft(0.05), "inference": Iterative(Fista(), tolerance=1e-3)}


def run(
    data: HiddenStateDataModule, place: Path, *others: pl.Callback, **parts: Any
) -> tuple[DictionaryLearner, list[Step]]:
    watch = Watch()
    learner = small_learner(data, **parts)
    small_trainer(place, [watch, *others]).fit(learner, datamodule=data)
    return learner, watch.steps


def direction(step: Step, weight: Tensor) -> Tensor:
    """The paper's update direction by hand, `-(1/n) sum_i w_i a_i^T r_i`, `[m, d]`."""
    total = torch.zeros_like(step.atoms)
    codes = step.solution.codes.detach().dense()
    for w, a, x in zip(weight, codes, step.x, strict=True):
        residual = x - a @ step.atoms
        total -= w * a[:, None] * residual[None]
    return total / len(step.x)
