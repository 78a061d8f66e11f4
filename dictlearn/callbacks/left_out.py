"""How many of the vectors that were trained on had no weight."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from dictlearn.mesh import mesh_of


class LeftOut(pl.Callback):
    """Counts the training vectors that are left out: not finite, or far longer than usual.

    They keep their places in a batch, without weight. A run that goes on counts on.
    """

    def __init__(self) -> None:
        self._counts = torch.zeros(2, dtype=torch.int64)  # left out, all: of this process

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count those of a batch; nobody waits for a GPU."""
        out = (batch.weight == 0).sum()
        self._counts = self._counts.to(out.device)
        self._counts += torch.stack([out, torch.full_like(out, len(batch.weight))])

    def fraction(self, trainer: pl.Trainer) -> float:
        """Return the share that is left out, of all processes together; all of them call this."""
        out, seen = self._total(trainer).tolist()
        return float(out / max(1, seen))

    def _total(self, trainer: pl.Trainer) -> Tensor:
        data = mesh_of(trainer).data
        return data.total(self._counts.to(trainer.strategy.root_device))

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the counts of all processes."""
        checkpoint["left_out"] = self._total(trainer).tolist()

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let one process go on from them."""
        if mesh_of(trainer).data.rank == 0:
            self._counts = torch.tensor(checkpoint.get("left_out", [0, 0]))
