"""Which batch fits, where the memory of a device was full."""

from __future__ import annotations

import traceback
from typing import Any

import pytorch_lightning as pl
import torch

from dictlearn.ensemble import learners
from dictlearn.hidden_states import HiddenStates

_NO_MEMORY = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether a GPU, or the machine, had no memory left; on a CPU torch has no name for it."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)
    )


class BatchThatFits(pl.Callback):
    """Halves the batch of a run that is out of memory until a step's passes succeed.

    Beside optimizer and transformer, where they still lie; one process alone can try.

    Attributes:
        vectors: the batch that fits, 0 if none does; None where it was not tried.
    """

    def __init__(self) -> None:
        self.vectors: int | None = None

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Try, if that was the reason."""
        if not is_out_of_memory(exception) or trainer.world_size > 1:
            return
        traceback.clear_frames(exception.__traceback__)  # they hold the tensors of the step
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        n = data.options.batch_size // 2
        try:
            while n and not _fits(pl_module, data, n):
                n //= 2
        except Exception:  # of a run that is not set up, say: what is told is the full memory
            return
        self.vectors = n


def _fits(module: pl.LightningModule, data: Any, n: int) -> bool:
    try:
        _pass(module, data.sample(n), n)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)
        return False
    finally:
        module.zero_grad()
    return True


@torch.enable_grad()
def _pass(module: pl.LightningModule, sample: HiddenStates, n: int) -> None:
    """Make the codes of all dictionaries that learn, and the gradients of their errors."""
    states = HiddenStates(*(column[:n].to(module.device) for column in sample))
    errors = []
    for learner in learners(module, acting=True).values():
        x, solution = learner.infer(states, learner.sparsity(states.layer, training=True))
        errors.append((x - learner.dictionary.decode(solution.codes)).square().mean())
    total = torch.stack(errors).sum()
    if total.requires_grad:
        total.backward()  # type: ignore[no-untyped-call]
