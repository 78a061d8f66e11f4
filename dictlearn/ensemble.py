"""DictionaryEnsemble: several dictionaries that learn side by side from one stream.

The transformer runs once for all of them. Each learns as it would alone, bit by bit on one
process: they share the batches and nothing else, unless they begin as one.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from dictlearn import processes
from dictlearn.errors import InputError
from dictlearn.hidden_states import DataModule, HiddenStates
from dictlearn.learner import DictionaryLearner
from dictlearn.update import DictionaryOptimizer, JointOptimizer, copy_state

log = logging.getLogger(__name__)


class Variant(DictionaryLearner):
    """One dictionary of several: what a learner has from Lightning it has from the ensemble.

    Attributes:
        report: takes its figures.
        optimizer: its own part of the joint one.
        stream: what it learns from.
    """

    report: Callable[[Mapping[str, Any]], None]
    optimizer: DictionaryOptimizer
    stream: DataModule

    @property
    def data(self) -> DataModule:
        """The stream that all variants learn from."""
        return self.stream

    def optimizers(self, use_pl_optimizer: bool = True) -> Any:
        """Return its own optimizer."""
        return self.optimizer

    @torch.no_grad()
    def go_on_from(self, other: Variant) -> None:
        """Take over what another one has learned; how many codes it wants is its own matter."""
        for mine, its in zip(_tensors(self), _tensors(other), strict=True):
            mine.copy_(its)
        if self.price is not None and other.price is not None:
            self.price.go_on_from(other.price)
        self.inference.forget_prices()
        self.vectors_seen = other.vectors_seen
        copy_state(other.optimizer, self.optimizer)

    def log_dict(self, dictionary: Any, *args: Any, **kwargs: Any) -> None:
        """Hand the figures to the ensemble, which logs them under the name of the variant."""
        self.report(dictionary)


class DictionaryEnsemble(pl.LightningModule):
    """Learns several dictionaries on one extraction pass; each is what a run of its own gives.

    Their parameters are disjoint, so that the gradient of the sum of their losses is, for each,
    that of its own loss; one optimizer steps all of theirs. Figures are logged under
    ``<name>/val/fvu`` and so on, and those of the variant with the lowest held-out FVU under
    their plain names too.

    With `branch_at` they begin as one, as solutions along a path of penalties do (Friedman, Hastie
    & Tibshirani 2010, "Regularization paths", sec. 2.5): the middle one of the list learns for all,
    and at that share of the run the others go on from its dictionary, encoder, optimizer and
    counters. It is still bit by bit what a run of its own gives, and the others are not.

    Args:
        variants: the learners by name; what they learn from must be the same.
        config: the resolved config as plain values, kept in every checkpoint.
        branch_at: share of the run, in [0, 1), that they have in common.

    Attributes:
        apart: whether every one learns for itself by now.

    Raises:
        InputError: they cannot begin as one, because their tensors are not of one kind.
    """

    def __init__(
        self,
        variants: Mapping[str, Variant],
        config: dict[str, Any] | None = None,
        branch_at: float = 0.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters({"config": config or {}}, logger=False)
        self.branch_at = branch_at
        self.apart = branch_at == 0
        self.names = tuple(variants)
        self.variants = nn.ModuleList(variants.values())
        kinds = {name: _kind(variant) for name, variant in variants.items()}
        other = [name for name in self.names if kinds[name] != kinds[self.names[0]]]
        if branch_at and other:
            raise InputError(
                f"branch_at={branch_at}: what {self.names[0]} and {other[0]} learn is not of one "
                "kind, and cannot begin as one: set branch_at=null."
            )
        for name, variant in variants.items():
            variant.report = functools.partial(self._report, name)

    @property
    def parts(self) -> dict[str, Variant]:
        """The learners by name."""
        return dict(zip(self.names, cast("list[Variant]", self.variants), strict=True))

    @property
    def acting(self) -> dict[str, Variant]:
        """Those that learn at this point of the run, by name."""
        middle = self.names[(len(self.names) - 1) // 2]
        return self.parts if self.apart else {middle: self.parts[middle]}

    @property
    def best(self) -> Variant:
        """The variant with the lowest held-out FVU so far."""

        def error(variant: Variant) -> tuple[bool, float]:
            fvu = variant.held_out_figures.get("val/fvu", float("nan"))
            return fvu != fvu, fvu

        return min(self.acting.values(), key=error)

    @property
    def held_out_figures(self) -> dict[str, float]:
        """The newest held-out figures of all, by prefixed names, and of the best by plain ones."""
        figures = {
            f"{name}/{key}": value
            for name, variant in self.acting.items()
            for key, value in variant.held_out_figures.items()
        }
        return figures | self.best.held_out_figures

    @property
    def validated_at(self) -> int:
        """The step of the newest held-out figures."""
        return self.best.validated_at

    @property
    def vectors_seen(self) -> int:
        """Vectors that each of them has learned from."""
        return self.best.vectors_seen

    def _report(self, name: str, figures: Mapping[str, Any]) -> None:
        self.log_dict({f"{name}/{key}": value for key, value in figures.items()})

    def setup(self, stage: str) -> None:
        """Set all of them up, from one sample of the data."""
        data: DataModule = self.trainer.datamodule  # type: ignore[attr-defined]
        remembering = cast("DataModule", _Remembering(data))
        for variant in self.parts.values():
            variant.trainer = self.trainer
            variant.stream = remembering
            variant.setup(stage)
            variant.stream = data

    def configure_optimizers(self) -> Any:
        """Put their optimizers and schedules together."""
        factors = []
        for name, variant in self.parts.items():
            made = variant.configure_optimizers()
            variant.optimizer = made["optimizer"]
            variant.optimizer.guard.know(variant, f"{name}/")
            factors += made["lr_scheduler"]["scheduler"].lr_lambdas
        joint = JointOptimizer([variant.optimizer for variant in self.parts.values()])
        schedule = LambdaLR(joint, factors)
        return {"optimizer": joint, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip each gradient by its own norm."""
        for variant in self.acting.values():
            variant.configure_gradient_clipping(
                variant.optimizer, gradient_clip_val, gradient_clip_algorithm
            )

    def training_step(self, batch: HiddenStates, batch_idx: int) -> Tensor:
        """Return the sum of the losses of all on the same batch."""
        if not self.apart:
            self._part_if_due(batch)
        acting = self.acting.values()
        joint = self.optimizers(use_pl_optimizer=False)
        assert isinstance(joint, JointOptimizer)
        joint.acting = tuple(variant.optimizer for variant in acting)
        loss = torch.stack([variant.training_step(batch, batch_idx) for variant in acting]).sum()
        if self.apart or not isinstance(self.trainer.strategy, DDPStrategy):
            return loss
        return loss + processes.slope_zero(self)

    def _part_if_due(self, batch: HiddenStates) -> None:
        """Let every one learn for itself from the step on that passes their common share."""
        (one,) = self.acting.values()
        seen = one.vectors_seen + len(batch.layer) * one.mesh.data.count
        if seen <= self.branch_at * one.max_vectors:
            return
        self.apart = True
        for variant in self.parts.values():
            if variant is not one:
                variant.go_on_from(one)
        log.info("The dictionaries go on each by itself from step %d", self.trainer.global_step)

    def validation_step(self, batch: HiddenStates, batch_idx: int) -> dict[str, Any]:
        """Measure all on the same held-out vectors; return what each returns, by name."""
        parts = self.acting.items()
        return {name: variant.validation_step(batch, batch_idx) for name, variant in parts}

    def on_validation_epoch_end(self) -> None:
        """Log the held-out figures of all, and those of the best under their plain names."""
        for variant in self.acting.values():
            variant.on_validation_epoch_end()
        self.log_dict(self.best.held_out_figures)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what each keeps."""
        checkpoint["apart"] = self.apart
        checkpoint["variants"] = {name: {} for name in self.names}
        for name, variant in self.parts.items():
            variant.on_save_checkpoint(checkpoint["variants"][name])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it up again.

        Raises:
            InputError: the checkpoint is of other variants.
        """
        saved = checkpoint.get("variants", {})
        if tuple(saved) != self.names:
            raise InputError(
                f"The checkpoint is of the variants {', '.join(saved) or '(none)'}, and this run "
                f"has {', '.join(self.names)}: go on with the options that the run began with."
            )
        self.apart = bool(checkpoint.get("apart", True))
        for number, (name, variant) in enumerate(self.parts.items()):
            own = _below(checkpoint["state_dict"], f"variants.{number}.")
            variant.on_load_checkpoint({**saved[name], "state_dict": own})
        if self.apart and self.vectors_seen < self.branch_at * self.best.max_vectors:
            said = "branch_at=%s changes nothing: the dictionaries of the checkpoint have parted."
            log.warning(said, self.branch_at)


def learners(module: pl.LightningModule, *, acting: bool = False) -> dict[str, DictionaryLearner]:
    """Return the learners of a module by name: of an ensemble its variants (only those that learn
    at this point of the run, if `acting`), of a learner itself under the name `""`, of anything
    else none.
    """  # noqa: D205
    if isinstance(module, DictionaryEnsemble):
        return dict(module.acting if acting else module.parts)
    return {"": module} if isinstance(module, DictionaryLearner) else {}


class _Remembering:
    """A stream that draws a sample once, and not once for every variant."""

    def __init__(self, data: DataModule) -> None:
        self._data = data
        self.sample = functools.cache(data.sample)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)


def _tensors(variant: Variant) -> Iterator[Tensor]:
    yield from itertools.chain(variant.parameters(), variant.buffers())


def _kind(variant: Variant) -> list[torch.Size]:
    return [entry.shape for entry in _tensors(variant)]


def _below(tensors: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
