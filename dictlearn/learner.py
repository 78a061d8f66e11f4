"""DictionaryLearner: one dictionary over all tapped layers, learned as in Algorithm 1 of the paper.

A composition and no mathematics of its own: infer the codes, descend the reconstruction error,
put the atoms back on the sphere. Legend: n rows, d width, m atoms, L tapped layers.
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from dictlearn.dictionary import Dictionary
from dictlearn.errors import check_shapes
from dictlearn.hidden_states import DataModule, HiddenStates, Normalization
from dictlearn.inference import Inference, Solution, amortisation, objective_of
from dictlearn.inference.price import GAIN, SLOW_GAIN, Price
from dictlearn.losses import Loss, Objective, View
from dictlearn.mesh import Mesh, mesh_of, whole_codes
from dictlearn.metrics import HeldOutMetrics, training_figures
from dictlearn.metrics.held_out import Measured
from dictlearn.prox import Moment, Prox
from dictlearn.sharding import clip_by_norm, share_out_learned, share_out_state
from dictlearn.update import DictionaryOptimizer, Run, UpdateRule, lr_factor


class DictionaryLearner(pl.LightningModule):
    """Learns `x = a Phi + eps, a >= 0, ||phi_c|| = 1` from a stream of hidden states.

    Args:
        dictionary: the atoms, `[m, d]`.
        prox: what makes the codes sparse.
        inference: `x -> codes`; its own parameters, if any, are trained along.
        update: how the atoms move.
        loss: what training lowers; the objective of sparse coding if None.
        max_vectors: the budget, which the schedule of the learning rate refers to.
        seed: of what a sparsity draws during training.
        config: the resolved config as plain values, kept in every checkpoint.
    """

    normalization: Normalization
    idle: Tensor

    def __init__(
        self,
        dictionary: Dictionary,
        prox: Prox,
        inference: Inference,
        update: UpdateRule,
        loss: Loss | None = None,
        *,
        max_vectors: int,
        seed: int = 0,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters({"config": config or {}}, logger=False)
        prox.check(dictionary.n_atoms)
        inference.build(dictionary, prox)
        self.dictionary = dictionary
        self.prox = prox
        self.inference = inference
        self.update = update
        self.loss = Objective() if loss is None else loss
        self.loss.check(dictionary.n_atoms, inference)
        self.max_vectors = max_vectors
        self.seed = seed
        wanted = prox.steered_to
        gain = SLOW_GAIN if inference.differentiable else GAIN
        self.price = None if wanted is None else Price(float(prox.lambda_), wanted, gain)
        self.mesh = Mesh()
        self.vectors_seen = 0
        self.held_out_figures: dict[str, float] = {}
        self.validated_at = -1
        self._some: list[HiddenStates] = []
        self.validation_firing_frequency = torch.zeros(dictionary.n_atoms)
        self.register_buffer("idle", torch.zeros(dictionary.n_atoms, dtype=torch.int64))

    @property
    def data(self) -> DataModule:
        """The stream this learner is attached to."""
        data: DataModule = self.trainer.datamodule  # type: ignore[attr-defined]
        return data

    def setup(self, stage: str) -> None:
        """Take the normalisation from the data and, before training, the first atoms."""
        if hasattr(self, "held_out"):
            return
        self.normalization = self.data.normalization
        self.held_out = HeldOutMetrics(
            self.data.layers, self.dictionary.width, self.dictionary.n_atoms
        )
        sample = self.data.sample(self.dictionary.n_for_start)
        here = self.dictionary.atoms.device  # the trainer moves the module to its own after this
        rows = self.normalization(sample.vectors.to(here), sample.layer.to(here))
        self.dictionary.initialize_from(rows)
        self.inference.reset(self.dictionary)
        self._whole = {name: entry.to("meta") for name, entry in self.state_dict().items()}
        self.mesh = mesh_of(self.trainer)
        self.held_out.share(self.mesh.data.group)
        if not self.mesh.dictionary.alone:
            share_out_learned(self, self.mesh)

    def configure_optimizers(self) -> Any:
        """Build the update rule's optimizer and its schedule, stated in vectors."""
        per_step = self.data.options.batch_size * self.mesh.data.count
        first = int(next(iter(self.inference.boundaries), 1.0) * self.max_vectors)
        run = Run(self.dictionary.n_atoms, self.dictionary.width, per_step, first)
        given = (list(part.parameters()) for part in (self.dictionary, self.inference))
        optimizer = self.update.for_run(run).build(*given)
        optimizer.shards = self.mesh.dictionary
        if not optimizer.shards.alone:
            share_out_state(optimizer, self.dictionary, self.inference, self.mesh)
        optimizer.guard.know(self)
        schedule = LambdaLR(optimizer, lambda step: self._lr_factor(step * per_step))
        scheduler = {"scheduler": schedule, "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def _lr_factor(self, vectors: int) -> float:
        """Return the factor of the learning rate; every phase of the inference has a schedule."""
        bounds = [0.0, *self.inference.boundaries, 1.0]
        starts = [int(share * self.max_vectors) for share in bounds]
        phase = max(i for i, start in enumerate(starts[:-1]) if start <= vectors or i == 0)
        first, last = starts[phase], starts[phase + 1]
        return lr_factor(self.update, vectors - first, last - first, phase)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip what moves the atoms along the sphere; the rest would be undone anyway."""
        if gradient_clip_val and isinstance(optimizer, DictionaryOptimizer):
            optimizer.project_gradient()
        if self.mesh.dictionary.alone or gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            clip_by_norm(self.dictionary, self.inference, gradient_clip_val)

    def sparsity(self, layer: Tensor, *, training: bool = False) -> Prox:
        """Return the sparsity of rows from the layers `[n]`, at this step if in training."""
        prox = self.prox if self.price is None else self.prox.priced(self.price.lambda_)
        if training:
            fraction = min(1.0, self.vectors_seen / self.max_vectors)
            prox = prox.at(Moment(fraction, self.seed, self.trainer.global_step))
        return prox.for_layers(self.normalization.row(layer))

    def infer(
        self, states: HiddenStates, prox: Prox | None = None, *, certify: bool = False
    ) -> tuple[Tensor, Solution]:
        """Return the normalised vectors less the bias, `[n, d]`, and their codes.

        Args:
            states: raw vectors of a batch.
            prox: the sparsity; that of evaluation if None.
            certify: whether the duality gap is wanted where it costs extra.
        """
        prox = self.sparsity(states.layer) if prox is None else prox
        x = self.dictionary.centre(self.normalization(states.vectors, states.layer))
        learned = self.dictionary.atoms
        atoms = learned.detach() if self.update.fixed_codes else learned
        return x, self.inference(x, atoms, prox, certify=certify)

    def raw(self, decoded: Tensor, layer: Tensor) -> Tensor:
        """Return decoded rows `[n, d]` as hidden states of the layers `[n]`."""
        return self.normalization.invert(self.dictionary.uncentre(decoded), layer)

    def training_step(self, batch: HiddenStates, batch_idx: int) -> Tensor:
        """Infer the codes, and return the loss whose gradient moves the atoms."""
        self.inference.advance(self.vectors_seen / self.max_vectors)
        prox = self.sparsity(batch.layer, training=True)
        x, solution = self.infer(batch, prox)
        decoded = self.dictionary.decode(solution.codes)
        parts = (self.dictionary, self.inference, prox, batch.weight, self.is_dead(), self.idle)
        view = View(x, decoded, solution, *parts)
        loss = self.loss(view)
        self._observe(view)
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (batch_idx + 1) % every == 0:
            self._log_training(batch, decoded.detach(), solution, loss.detach())
        return loss

    @torch.no_grad()
    def _observe(self, view: View) -> None:
        """Count who fired and how strongly, over the rows of all; steer what is steered."""
        codes, n = view.solution.codes.detach(), len(view.x)
        optimizer = self.optimizers(use_pl_optimizer=False)
        weighed = isinstance(optimizer, DictionaryOptimizer) and optimizer.weighs_energy
        square = codes.values.square()
        square = square * view.weight[:, None] if weighed else square
        data, shards = self.mesh
        seen = data.total(torch.stack([codes.sum_over_rows(square) / n, codes.fired()]))
        energy, fired, vectors = seen[0] / data.count, seen[1], n * data.count
        self.idle.add_(vectors).masked_fill_(fired > 0, 0)
        self.vectors_seen += vectors
        l0 = shards.total(fired.sum()) / vectors
        self.inference.observe(l0)
        if self.price is not None:
            self.price.observe(l0)
        if isinstance(optimizer, DictionaryOptimizer):
            optimizer.guard.step = self.trainer.global_step
            optimizer.set_exact(not view.solution.codes.values.requires_grad)
            optimizer.observe(energy)
            if optimizer.wants_codes:
                optimizer.observe_codes(view.x.detach(), codes, view.weight)

    @torch.no_grad()
    def _log_training(
        self, batch: HiddenStates, decoded: Tensor, solution: Solution, loss: Tensor
    ) -> None:
        error = self.raw(decoded, batch.layer) - batch.vectors
        spread = (
            batch.vectors - self.data.statistics.mean.to(error)[self.normalization.row(batch.layer)]
        )
        shards, optimizer = self.mesh.dictionary, self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, DictionaryOptimizer)
        figures = training_figures(loss, solution.codes, error, spread, shards)
        figures |= {
            "train/dead_fraction": shards.mean(self.is_dead().float().mean()),
            "train/lr": torch.tensor(optimizer.rate),
            "train/vectors": torch.tensor(float(self.vectors_seen)),
        }
        self.log_dict(figures)

    def validation_step(self, batch: HiddenStates, batch_idx: int) -> dict[str, Any]:
        """Measure a batch of held-out vectors in the raw space; hand the codes to callbacks."""
        prox = self.sparsity(batch.layer)
        x, solution = self.infer(batch, prox)
        shards = self.mesh.dictionary
        decoded = self.dictionary.decode(solution.codes)
        raw, row = self.raw(decoded, batch.layer), self.normalization.row(batch.layer)
        value = objective_of(x, decoded, solution.codes, prox, shards)
        codes = whole_codes(solution.codes, shards)
        self.held_out.update(Measured(batch.vectors, raw, row, codes, value))
        if certified := bool(solution.gap.isfinite().all()):
            self.held_out.update_gap(solution.gap, row)
        if not certified or self.inference.learned is not None:
            some = self.data.some_held_out(batch)
            self._some.append(HiddenStates(*(column[some] for column in batch)))
        return {"codes": codes}

    def _measure_some(self) -> None:
        """Measure what is as dear as the codes of all, on some: gaps, an encoder and a solver."""
        encoder, atoms, pair = self.inference.learned, self.dictionary.atoms, None
        if sum(len(part.layer) for part in self._some) > 0:
            some, shards = HiddenStates.concatenate(self._some), self.mesh.dictionary
            prox = self.sparsity(some.layer)
            x, solution = self.infer(some, prox, certify=True)
            if not self.held_out.gap.update_called:
                self.held_out.update_gap(solution.gap, self.normalization.row(some.layer))
            if encoder is not None:
                codes = whole_codes(encoder(x, atoms, prox).codes, shards)
                pair = amortisation(x, codes, shards.joined(atoms), prox)
        self._some.clear()
        # Sums of nothing otherwise: all processes have some to share, and the metric is content.
        none = atoms.new_zeros(1)
        self.held_out.update_amortisation(*(pair or (none, none)))

    def on_validation_epoch_end(self) -> None:
        """Log the held-out figures; they are already those of all processes."""
        self._measure_some()
        figures, firing = self.held_out.compute()
        self.held_out.reset()
        self.validation_firing_frequency = firing.float().cpu()
        self.held_out_figures = {key: float(value) for key, value in figures.items()}
        self.validated_at = self.trainer.global_step
        self.log_dict({key: value.float() for key, value in figures.items()}, rank_zero_only=False)

    def is_dead(self) -> Tensor:
        """Return which atoms have not fired for `dictionary.dead_after_vectors`, bool `[m]`."""
        return self.idle >= self.dictionary.dead_after_vectors

    @torch.no_grad()
    def replace_atoms(self, indices: Tensor, atoms: Tensor) -> None:
        """Put unit rows `atoms: [k, d]` in the place of atoms `indices: [k]`, and let them start
        anew: no moments, no energy, not idle. The indices count the atoms of all shards.
        """  # noqa: D205
        mine, indices = self.mesh.dictionary.own(indices, self.dictionary.n_atoms)
        self.dictionary.atoms[indices] = atoms[mine]
        self.inference.reset_atoms(self.dictionary, indices)
        self.idle[indices] = 0
        optimizer = self.optimizers(use_pl_optimizer=False)
        if isinstance(optimizer, DictionaryOptimizer):
            optimizer.reset_atoms(indices)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the number of vectors seen, and the figures of the last validation."""
        checkpoint["vectors_seen"] = self.vectors_seen
        checkpoint["held_out"] = {"figures": self.held_out_figures, "step": self.validated_at}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them up again; InputError if they are of another dictionary or encoder."""
        check_shapes(checkpoint["state_dict"], self._whole)
        self.vectors_seen = int(checkpoint["vectors_seen"])
        held_out = checkpoint.get("held_out", {"figures": {}, "step": -1})
        self.held_out_figures, self.validated_at = held_out["figures"], held_out["step"]
