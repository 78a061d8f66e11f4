"""Dead and double atoms take the place of what the dictionary reconstructs worst."""

from __future__ import annotations

import logging
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from dictlearn import processes
from dictlearn.callbacks.duplicates import Twins, find_twins, merge_directions, usage_rank
from dictlearn.errors import number, whole_number
from dictlearn.hidden_states import HiddenStates
from dictlearn.learner import DictionaryLearner
from dictlearn.seeding import generator

log = logging.getLogger(__name__)


class DeadAtomRevival(pl.Callback):
    """Replaces atoms that have not fired for `dictionary.dead_after_vectors`, and double ones.

    An atom in want of a place becomes the residual of a vector of the present batch, drawn with a
    probability proportional to its squared error, so the new atom points where the dictionary is
    missing a direction. Moments and energies of the optimizer are cleared for it. Of two atoms
    that are nearly the same the rarer one goes. The other moves to the mean of the two, weighted
    by the energy of their codes, and takes over what the optimizer knows of them; the codes it
    takes over by itself, being what inference then finds.
    Where the update rule leaves the atoms as they are, so does this.
    The batch is that of all processes; where several hold the dictionary together, it is whole in
    each of them for that moment.

    Args:
        every_vectors: how often to look, in training vectors of all processes.
        until_fraction: no replacement after this share of the run, so that the last atoms still
            have time to learn.
        seed: of the draws, keyed by the training step.
        duplicate_cosine: above it two atoms count as one; None: doubles are left.
        name: of the dictionary, where a run learns several.

    Attributes:
        revived: atoms replaced so far, double ones included.
        merged: double ones among them.
    """

    def __init__(
        self,
        every_vectors: int,
        until_fraction: float,
        seed: int = 0,
        duplicate_cosine: float | None = None,
        name: str = "",
    ) -> None:
        self.lead = f"{name}: " if name else ""
        self.every_vectors = whole_number("callbacks.revival.every_vectors", every_vectors)
        self.until_fraction = number("callbacks.revival.until_fraction", until_fraction, 0, 1)
        if duplicate_cosine is not None:
            number("callbacks.revival.duplicate_cosine", duplicate_cosine, 0, 1)
        self.duplicate_cosine = duplicate_cosine
        self.seed = seed
        self.revived = 0
        self.merged = 0

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
        last = seen - len(batch.vectors) * pl_module.mesh.data.count
        crossed = seen // self.every_vectors > last // self.every_vectors
        if crossed and batch_idx < self.until_fraction * trainer.num_training_batches:
            optimizer = pl_module.optimizers(use_pl_optimizer=False)
            with processes.among(pl_module.mesh.data.group):
                if getattr(optimizer, "moves_atoms", True):
                    self._revive(trainer, pl_module, batch)

    @torch.no_grad()
    def _revive(self, trainer: pl.Trainer, learner: DictionaryLearner, batch: HiddenStates) -> None:
        joined = learner.mesh.dictionary.joined
        dead = joined(learner.is_dead())
        if self.duplicate_cosine is None and not dead.any():
            return
        x, solution = learner.infer(batch, learner.sparsity(batch.layer))
        codes = solution.codes.detach()
        residual = (x - learner.dictionary.decode(codes)).detach()
        energy = processes.total(joined(codes.sum_over_rows(codes.values.square())))
        error = processes.gathered(residual.square().sum(-1))
        atoms = joined(learner.dictionary.atoms.detach())
        twins = self._twins(atoms, energy, joined(learner.idle), dead)
        places = torch.cat([dead.nonzero().flatten(), twins.gone])
        draws = generator(self.seed, "revival", trainer.global_step)
        rows = sample_by_error(error, len(places), draws)
        places = places[: len(rows)]
        merged = torch.isin(twins.gone, places)
        decided = [places, rows, *(part[merged] for part in twins)]
        places, rows, *pairs = _of_first_process(trainer, decided)
        if len(places):
            fresh = torch.nn.functional.normalize(processes.rows_of_all(residual, rows), dim=-1)
            means = merge_directions(atoms, energy, Twins(*pairs))
            self._replace(learner, places, fresh, Twins(*pairs), means)
            step, said = trainer.global_step, "%s%d dead or double atoms replaced at step %d"
            log.info(said, self.lead, len(places), step)

    def _twins(self, atoms: Tensor, energy: Tensor, idle: Tensor, dead: Tensor) -> Twins:
        """Return the double atoms among the living; the batch's energy says which is rarer."""
        if self.duplicate_cosine is None:
            none = torch.empty(0, dtype=torch.int64, device=dead.device)
            return Twins(none, none)
        living = (~dead).nonzero().flatten()
        usage = usage_rank(energy[living], idle[living])
        kept, gone = find_twins(atoms[living], usage, self.duplicate_cosine)
        return Twins(living[kept], living[gone])

    def _replace(
        self,
        learner: DictionaryLearner,
        places: Tensor,
        fresh: Tensor,
        twins: Twins,
        means: Tensor,
    ) -> None:
        """Merge the double atoms, then put the fresh ones in their places."""
        optimizer = learner.optimizers(use_pl_optimizer=False)
        if hasattr(optimizer, "merge_atoms"):
            optimizer.merge_atoms(*twins)
        mine, own = learner.mesh.dictionary.own(twins.kept, learner.dictionary.n_atoms)
        learner.dictionary.atoms[own] = means[mine]
        learner.replace_atoms(places, fresh)
        self.revived += len(places)
        self.merged += len(twins.gone)

    def state_dict(self) -> dict[str, Any]:
        """Return the numbers of atoms replaced so far."""
        return {"revived": self.revived, "merged": self.merged}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the counts of an earlier run."""
        self.revived = int(state_dict["revived"])
        self.merged = int(state_dict.get("merged", 0))


def _of_first_process(trainer: pl.Trainer, parts: list[Tensor]) -> list[Tensor]:
    """Return the tensors of process 0, on the device of this one, lest unequal machines disagree.

    By way of the CPU: a pickled CUDA tensor would come back on the GPU of process 0.
    """
    device = parts[0].device
    decided = trainer.strategy.broadcast([part.cpu() for part in parts])
    return [part.to(device) for part in decided]


def sample_by_error(error: Tensor, n: int, draws: torch.Generator) -> Tensor:
    """Draw at most `n` distinct rows with probability proportional to their squared error.

    Args:
        error: squared error of every row, `[rows]`.
        n: how many rows are wanted.
        draws: a CPU generator.

    Returns:
        Row numbers, int64; fewer than `n` when fewer rows have an error above zero.
    """
    n = min(n, int((error > 0).sum()))
    if n == 0:
        return torch.empty(0, dtype=torch.int64, device=error.device)
    return torch.multinomial(error.cpu(), n, generator=draws).to(error.device)
