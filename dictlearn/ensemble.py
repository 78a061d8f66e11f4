"""DictionaryEnsemble: several dictionaries that learn side by side from one stream.

The transformer runs once for all of them. Each learns as it would alone, bit by bit on one
process: they share the batches and nothing else.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from dictlearn.errors import InputError
from dictlearn.hidden_states import DataModule, HiddenStates
from dictlearn.learner import DictionaryLearner
from dictlearn.update import DictionaryOptimizer, JointOptimizer


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

    def log_dict(self, dictionary: Any, *args: Any, **kwargs: Any) -> None:
        """Hand the figures to the ensemble, which logs them under the name of the variant."""
        self.report(dictionary)


class DictionaryEnsemble(pl.LightningModule):
    """Learns several dictionaries on one extraction pass; each is what a run of its own gives.

    Their parameters are disjoint, so that the gradient of the sum of their losses is, for each,
    that of its own loss; one optimizer steps all of theirs. Figures are logged under
    ``<name>/val/fvu`` and so on, and those of the variant with the lowest held-out FVU under
    their plain names too.

    Args:
        variants: the learners by name; what they learn from must be the same.
        config: the resolved config as plain values, kept in every checkpoint.
    """

    def __init__(
        self, variants: Mapping[str, Variant], config: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.save_hyperparameters({"config": config or {}}, logger=False)
        self.names = tuple(variants)
        self.variants = nn.ModuleList(variants.values())
        for name, variant in variants.items():
            variant.report = functools.partial(self._report, name)

    @property
    def parts(self) -> dict[str, Variant]:
        """The learners by name."""
        return dict(zip(self.names, cast("list[Variant]", self.variants), strict=True))

    @property
    def best(self) -> Variant:
        """The variant with the lowest held-out FVU so far."""

        def error(variant: Variant) -> tuple[bool, float]:
            fvu = variant.held_out_figures.get("val/fvu", float("nan"))
            return fvu != fvu, fvu

        return min(self.parts.values(), key=error)

    @property
    def held_out_figures(self) -> dict[str, float]:
        """The newest held-out figures of all, by prefixed names, and of the best by plain ones."""
        figures = {
            f"{name}/{key}": value
            for name, variant in self.parts.items()
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
        for variant in self.parts.values():
            made = variant.configure_optimizers()
            variant.optimizer = made["optimizer"]
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
        for variant in self.parts.values():
            variant.configure_gradient_clipping(
                variant.optimizer, gradient_clip_val, gradient_clip_algorithm
            )

    def training_step(self, batch: HiddenStates, batch_idx: int) -> Tensor:
        """Return the sum of the losses of all on the same batch."""
        losses = [variant.training_step(batch, batch_idx) for variant in self.parts.values()]
        return torch.stack(losses).sum()

    def validation_step(self, batch: HiddenStates, batch_idx: int) -> dict[str, Any]:
        """Measure all on the same held-out vectors; return what each returns, by name."""
        parts = self.parts.items()
        return {name: variant.validation_step(batch, batch_idx) for name, variant in parts}

    def on_validation_epoch_end(self) -> None:
        """Log the held-out figures of all, and those of the best under their plain names."""
        for variant in self.parts.values():
            variant.on_validation_epoch_end()
        self.log_dict(self.best.held_out_figures)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what each keeps."""
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
        for number, (name, variant) in enumerate(self.parts.items()):
            own = _below(checkpoint["state_dict"], f"variants.{number}.")
            variant.on_load_checkpoint({**saved[name], "state_dict": own})


def learners(module: pl.LightningModule) -> dict[str, DictionaryLearner]:
    """Return the learners of a module by name: of an ensemble its variants, of a learner itself
    under the name `""`, of anything else none.
    """  # noqa: D205
    if isinstance(module, DictionaryEnsemble):
        return dict(module.parts)
    return {"": module} if isinstance(module, DictionaryLearner) else {}


class _Remembering:
    """A stream that draws a sample once, and not once for every variant."""

    def __init__(self, data: DataModule) -> None:
        self._data = data
        self.sample = functools.cache(data.sample)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)


def _below(tensors: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
