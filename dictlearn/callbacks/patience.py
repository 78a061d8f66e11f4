"""How long a process waits for the others: long at the start, not for ever later."""

from __future__ import annotations

import datetime
from typing import Any

import pytorch_lightning as pl
import torch

from dictlearn.errors import number


class Patience(pl.Callback):
    """Ends a run of several processes when one of them does not answer any more.

    A process that dies is noticed at once, one that hangs only by waiting. The time that torch
    gives by default is half an hour, and a shorter one from the start would not leave slow nodes
    the time to load; so it is shortened when the first step is done.

    Args:
        seconds: longest wait for the other processes after the first step. Saving, and the page
            that process 0 writes at a validation, must fit in.

    Raises:
        InputError: it is less than a second.
    """

    def __init__(self, seconds: float = 600) -> None:
        self.seconds = number("callbacks.patience.seconds", seconds, 1)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Shorten the time after the first step of this process, when all have come so far."""
        if trainer.world_size > 1 and not getattr(self, "_done", False):
            self._done = True
            set_timeout(self.seconds)


def set_timeout(seconds: float) -> None:
    """Set the longest wait of all process groups; torch has no public name for it yet."""
    from torch.distributed import distributed_c10d

    set_one: Any = getattr(distributed_c10d, "_set_pg_timeout", None)
    if set_one is None:
        return
    patience = datetime.timedelta(seconds=seconds)
    for group in list(distributed_c10d._world.pg_map):
        torch.distributed.barrier(group)
        set_one(patience, group)
