"""Dead atoms take the place of what the dictionary reconstructs worst."""

from __future__ import annotations

import logging
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from dictlearn.errors import number, whole_number
from dictlearn.hidden_states import HiddenStates
from dictlearn.learner import DictionaryLearner
from dictlearn.seeding import generator

log = logging.getLogger(__name__)


class DeadAtomRevival(pl.Callback):
    """Replaces atoms that have not fired for `dictionary.dead_after_vectors`.

    A dead atom becomes the residual of a vector of the present batch, drawn with a probability
    proportional to its squared error, so the new atom points where the dictionary is missing a
    direction. Moments and energies of the optimizer are cleared for it. All processes get the
    atoms of process 0.

    Args:
        every_vectors: how often to look, in training vectors of all processes.
        until_fraction: no replacement after this share of the run, so that the last atoms still
            have time to learn.
        seed: of the draws, keyed by the training step.
    """

    def __init__(self, every_vectors: int, until_fraction: float, seed: int = 0) -> None:
        self.every_vectors = whole_number("callbacks.revival.every_vectors", every_vectors)
        self.until_fraction = number("callbacks.revival.until_fraction", until_fraction, 0, 1)
        self.seed = seed
        self.revived = 0

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: HiddenStates,
        batch_idx: int,
    ) -> None:
        """Look for dead atoms at the boundaries of `every_vectors`."""
        if not isinstance(pl_module, DictionaryLearner):
            raise TypeError("DeadAtomRevival works on a DictionaryLearner")
        seen = pl_module.vectors_seen
        last = seen - len(batch.vectors) * trainer.world_size
        crossed = seen // self.every_vectors > last // self.every_vectors
        if crossed and batch_idx < self.until_fraction * trainer.num_training_batches:
            self._revive(trainer, pl_module, batch)

    @torch.no_grad()
    def _revive(self, trainer: pl.Trainer, learner: DictionaryLearner, batch: HiddenStates) -> None:
        dead = learner.is_dead().nonzero().flatten()
        if len(dead) == 0:
            return
        residual = learner.residual(batch)
        draws = generator(self.seed, "revival", trainer.global_step)
        rows = sample_by_error(residual, len(dead), draws)
        atoms = torch.nn.functional.normalize(residual[rows], dim=-1)
        # By way of the CPU: a pickled CUDA tensor would come back on the GPU of process 0.
        atoms = trainer.strategy.broadcast(atoms.cpu()).to(residual)
        dead = dead[: len(atoms)]
        learner.replace_atoms(dead, atoms)
        self.revived += len(dead)
        log.info("%d dead atoms revived at step %d", len(dead), trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of atoms revived so far."""
        return {"revived": self.revived}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the count of an earlier run."""
        self.revived = int(state_dict["revived"])


def sample_by_error(residual: Tensor, n: int, draws: torch.Generator) -> Tensor:
    """Draw at most `n` distinct rows with probability proportional to their squared error.

    Args:
        residual: `[rows, d]`.
        n: how many rows are wanted.
        draws: a CPU generator.

    Returns:
        Row numbers, int64; fewer than `n` when fewer rows have an error above zero.
    """
    error = residual.square().sum(-1).cpu()
    n = min(n, int((error > 0).sum()))
    if n == 0:
        return torch.empty(0, dtype=torch.int64, device=residual.device)
    return torch.multinomial(error, n, generator=draws).to(residual.device)
