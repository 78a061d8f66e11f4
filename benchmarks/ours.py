"""Our own learner on rows that are already there: the real classes and configs, no text, no loop.

`Run` steps a `DictionaryLearner`, composed as `train.py` composes it, by a stand-in for Lightning's
trainer and for the stream of hidden states: forward, loss, backward, update, schedule and revival
of dead atoms are those of a real run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from numpy.typing import NDArray
from omegaconf import OmegaConf
from torch import Tensor

from benchmarks.measure import Clock
from dictlearn.callbacks.revival import DeadAtomRevival
from dictlearn.codes import Codes
from dictlearn.configuration import build, config_dir
from dictlearn.hidden_states import HiddenStates, Normalization, Statistics
from dictlearn.learner import DictionaryLearner

Order = NDArray[np.int64]


class Data:
    """What the learner asks of its stream, for rows that are normalised already.

    Args:
        x: `[n, d]`.
        batch: rows of a step.
    """

    def __init__(self, x: Tensor, batch: int) -> None:
        self.x, self.options, self.layers = x, SimpleNamespace(batch_size=batch), (0,)
        zeros, ones = torch.zeros(1, x.shape[1]), torch.ones(1)
        self.statistics = Statistics(zeros, ones, ones)
        self.normalization = Normalization("none", (0,), zeros, ones).to(x.device)

    def states(self, rows: Tensor) -> HiddenStates:
        """Return rows `[n, d]` as a batch of the stream."""
        none = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
        return HiddenStates(rows, none, none, none, none, torch.ones(len(rows), device=rows.device))

    def sample(self, n: int) -> HiddenStates:
        """Return the first rows."""
        return self.states(self.x[:n])


class Run:
    """A learner in training.

    Args:
        overrides: of `conf/train.yaml`, as on the command line of `train.py`.
        x: training rows `[n, d]`.
        batch: rows of a step.
        n_vectors: the budget, which the schedule refers to.
        seed: of the run.
        revive: whether dead atoms are revived as in a default run.
        strategy: stands in for Lightning's; None: that of one process.
    """

    def __init__(
        self,
        overrides: Sequence[str],
        x: Tensor,
        batch: int,
        n_vectors: int,
        seed: int = 0,
        *,
        revive: bool = True,
        strategy: Any = None,
    ) -> None:
        config = configured([*overrides, f"max_vectors={n_vectors}", f"seed={seed}"])
        sizes = dict(config["dictionary"])
        sizes.pop("path", None)  # every run here starts anew
        dictionary = build(OmegaConf.create(sizes), width=x.shape[1], seed=seed)
        parts = {name: build(config[name]) for name in ("prox", "inference", "update", "loss")}
        self.learner = DictionaryLearner(dictionary, **parts, max_vectors=n_vectors, seed=seed)
        self.learner.to(x.device)
        self.data, self.batch = Data(x, batch), batch
        trainer = SimpleNamespace(
            global_rank=0,
            world_size=1,
            global_step=0,
            log_every_n_steps=10**12,
            datamodule=self.data,
            num_training_batches=max(1, n_vectors // batch),
            strategy=strategy or SimpleNamespace(broadcast=lambda atoms: atoms),
        )
        learner: Any = self.learner
        learner._trainer = self.trainer = trainer
        self.learner.setup("fit")
        built = self.learner.configure_optimizers()
        self.optimizer, self.schedule = built["optimizer"], built["lr_scheduler"]["scheduler"]
        trainer.optimizers = [self.optimizer]
        callbacks = config.get("callbacks") or {}
        wanted = revive and "revival" in callbacks
        self.revival: DeadAtomRevival | None = build(callbacks["revival"]) if wanted else None
        self.learner.train()

    def step(self, rows: Tensor) -> Tensor:
        """Take one whole training step on `rows: [batch, d]`; return the loss."""
        batch, number = self.data.states(rows), self.trainer.global_step
        loss = self.learner.training_step(batch, number)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        self.trainer.global_step += 1
        if self.revival is not None:
            learner: Any = self.learner
            self.revival.on_train_batch_end(learner.trainer, learner, None, batch, number)
        return loss.detach()

    def train(self, order: Order) -> dict[str, float]:
        """Take all steps over the rows in this order; return the time it took."""
        clock = Clock(self.data.x.device.type)
        self.learner.train()
        for first in range(0, len(order) - self.batch + 1, self.batch):
            numbers = torch.from_numpy(order[first : first + self.batch]).to(self.data.x.device)
            self.step(self.data.x[numbers])
        self.learner.eval()
        return clock.read()

    def atoms(self) -> Tensor:
        """Return the atoms `[m, d]`."""
        return self.learner.dictionary.atoms.detach()

    @torch.no_grad()
    def codes(self, x: Tensor, k: int | None = None) -> Codes:
        """Return the codes of `x: [n, d]` by the learner's inference, at `k` a row if given."""
        learner = self.learner
        layer = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        prox: Any = learner.sparsity(layer)
        if k is not None and hasattr(prox, "k"):
            prox = at_k(prox, k)
        found: Codes = learner.inference(learner.dictionary.centre(x), self.atoms(), prox).codes
        return found

    @torch.no_grad()
    def decode(self, codes: Codes) -> Tensor:
        """Return the reconstructions `[n, d]`."""
        return self.learner.dictionary.uncentre(self.learner.dictionary.decode(codes))


def at_k(prox: Any, k: int) -> Any:
    """Return a counting sparsity at another k."""
    import dataclasses

    return dataclasses.replace(prox, k=k)


def configured(overrides: Sequence[str]) -> Any:
    """Return `conf/train.yaml` with overrides, composed as `train.py` composes it."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir(), version_base="1.3"):
        return compose("train", overrides=list(overrides))


def save(path: Path, run: Run) -> None:
    """Keep what a run learned as `.npz`: atoms and bias, as peers' workers do."""
    bias = run.learner.dictionary.bias
    zeros = torch.zeros(run.atoms().shape[1])
    np.savez(
        path,
        atoms=run.atoms().cpu().numpy(),
        bias=(zeros if bias is None else bias.detach()).cpu().numpy(),
    )
