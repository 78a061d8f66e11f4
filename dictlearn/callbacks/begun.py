"""Keeps the options with which training begins."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from dictlearn.begun import keep_options

log = logging.getLogger(__name__)


class KeepOptions(pl.Callback):
    """Keeps them once nothing can refuse them any more, checkpoint or option.

    Args:
        run_dir: the run directory.
        options: see `begun.options_of_this_start`.
    """

    def __init__(self, run_dir: Path, options: str) -> None:
        self.run_dir, self._options = run_dir, options

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep them before the first step, also that of a run that goes on."""
        self.keep(trainer)

    def keep(self, trainer: pl.Trainer) -> None:
        """Keep them, the first time; a run may go on after its last step."""
        options, self._options = self._options, ""
        if options and trainer.is_global_zero:
            try:
                keep_options(self.run_dir, options)
            except OSError as error:
                log.warning("The options could not be kept in %s: %s", self.run_dir, error)
