"""Vectors per second of training, validation not counted."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl

from dictlearn.mesh import mesh_of


class Throughput(pl.Callback):
    """Measures training speed between logged steps and over the whole run.

    ``train/vectors_per_second`` counts the vectors of all processes; the time of validation is
    left out, that of extraction is in.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since: float | None = None
        self._window_seconds = 0.0
        self._window_vectors = 0
        self.vectors = 0

    def _pause(self) -> None:
        if self._since is not None:
            self.seconds += time.perf_counter() - self._since
            self._since = None

    def _run(self) -> None:
        self._since = time.perf_counter()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._run()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock while validation runs."""
        self._pause()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on."""
        if trainer.state.fn == "fit":
            self._run()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        self._pause()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count the batch, and log the speed since the last logged step."""
        self.vectors += len(batch.vectors) * mesh_of(trainer).data.count
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (batch_idx + 1) % every == 0:
            self._pause()
            self._run()
            vectors = self.vectors - self._window_vectors
            seconds = self.seconds - self._window_seconds
            self._window_vectors, self._window_seconds = self.vectors, self.seconds
            speed = vectors / max(seconds, 1e-9)
            pl_module.log("train/vectors_per_second", speed, rank_zero_only=True)

    def vectors_per_second(self) -> float:
        """Return the mean speed of the whole run."""
        return self.vectors / max(self.seconds, 1e-9)
