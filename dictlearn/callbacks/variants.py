"""Callbacks that work on one dictionary, where a run learns several: one for each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
from omegaconf import DictConfig
from pytorch_lightning.callbacks import ProgressBar

from dictlearn.callbacks.gallery import FactorGallery
from dictlearn.callbacks.progress import ValidationLines
from dictlearn.callbacks.revival import DeadAtomRevival
from dictlearn.configuration import build
from dictlearn.ensemble import DictionaryEnsemble, learners
from dictlearn.variants import place_of

OF_ONE = (DeadAtomRevival, FactorGallery, ValidationLines)


def callbacks(
    config: DictConfig, variants: Mapping[str, DictConfig], run_dir: Path
) -> list[pl.Callback]:
    """Build the callbacks of a run; those of `OF_ONE` once for every variant.

    Args:
        config: ``conf/train.yaml``, composed.
        variants: the config of every variant by its name; empty where there is one dictionary.
        run_dir: of the run.

    Raises:
        InputError: an option is wrong.
    """
    nodes = (config.get("callbacks") or {}).items()
    built = {key: build(node) for key, node in nodes if node is not None}
    made: list[pl.Callback] = []
    for key, callback in built.items():
        if variants and isinstance(callback, OF_ONE):
            made += [
                ForVariant(name, _of_variant(str(key), variant, name, run_dir))
                for name, variant in variants.items()
            ]
        elif config.trainer.enable_progress_bar or not isinstance(callback, ProgressBar):
            made.append(callback)
    return made


def _of_variant(key: str, config: DictConfig, name: str, run_dir: Path) -> pl.Callback:
    """Build a callback from the config of a variant: with its seed, in its folder."""
    node = config.callbacks[key]
    own = {"name": name, "run_dir": place_of(run_dir, name)}
    callback: pl.Callback = build(node, **{entry: own[entry] for entry in own if entry in node})
    return callback


class ForVariant(pl.Callback):
    """Shows a callback one variant of an ensemble as if it were the only dictionary of the run.

    As long as the variants are one still, the callbacks of the others have nothing to see.

    Its page, if it writes one, has the name of the variant before its own in loggers.

    Args:
        name: of the variant.
        callback: one of `OF_ONE`, made for this variant.
    """

    def __init__(self, name: str, callback: pl.Callback) -> None:
        self.name, self.callback = name, callback

    @property
    def state_key(self) -> str:
        """The key of its state in checkpoints."""
        return f"{self.name}/{self.callback.state_key}"

    def _seen(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> tuple[pl.Trainer, pl.LightningModule]:
        assert isinstance(pl_module, DictionaryEnsemble)
        return cast("pl.Trainer", _Seen(trainer, self.name)), pl_module.parts[self.name]

    def _acts(self, pl_module: pl.LightningModule) -> bool:
        return self.name in learners(pl_module, acting=True)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Pass it on."""
        self.callback.setup(*self._seen(trainer, pl_module), stage)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Pass it on."""
        if self._acts(pl_module):
            seen = self._seen(trainer, pl_module)
            self.callback.on_train_batch_end(*seen, outputs, batch, batch_idx)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Pass it on."""
        if self._acts(pl_module):
            self.callback.on_validation_start(*self._seen(trainer, pl_module))

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Pass on what this variant made of the batch."""
        if self._acts(pl_module):
            seen = self._seen(trainer, pl_module)
            self.callback.on_validation_batch_end(*seen, outputs[self.name], batch, batch_idx)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Pass it on."""
        if self._acts(pl_module):
            self.callback.on_validation_end(*self._seen(trainer, pl_module))

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the callback."""
        return self.callback.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it up."""
        self.callback.load_state_dict(state_dict)


class _Seen:
    """A trainer with the figures of one variant, by their plain names.

    Attributes:
        prefix: of its names in loggers.
    """

    def __init__(self, trainer: pl.Trainer, name: str) -> None:
        self._trainer, self.prefix = trainer, f"{name}/"

    @property
    def callback_metrics(self) -> dict[str, Any]:
        """The figures of this variant."""
        logged, prefix = self._trainer.callback_metrics, self.prefix
        mine = (key for key in logged if key.startswith(prefix))
        return {key.removeprefix(prefix): logged[key] for key in mine}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)
