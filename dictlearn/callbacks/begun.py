"""Keeps the options with which training begins."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl

from dictlearn.begun import keep_options


class KeepOptions(pl.Callback):
    """Keeps them once nothing can refuse them any more, checkpoint or option.

    Args:
        run_dir: the run directory.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Do it; a run that goes on begins anew, too."""
        if trainer.is_global_zero:
            keep_options(self.run_dir)
