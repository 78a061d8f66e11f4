"""Figures of one training batch: cheap, noisy, and of the rows of all processes."""

from __future__ import annotations

import torch
from torch import Tensor

from dictlearn import processes
from dictlearn.codes import Codes
from dictlearn.mesh import ALONE, Processes


@torch.no_grad()
def training_figures(
    loss: Tensor, codes: Codes, error: Tensor, spread: Tensor, shards: Processes = ALONE
) -> dict[str, Tensor]:
    """Return ``train/loss``, ``train/fvu`` and ``train/l0`` of a batch, all processes together.

    Args:
        loss: of the rows of this process, 0-dimensional.
        codes: of its `n` rows.
        error: what the dictionary leaves of them, `[n, d]`.
        spread: the rows less the mean of their layer, `[n, d]`.
        shards: the processes that hold the atoms together; codes are over those of this one.
    """
    l0 = shards.total(codes.l0().to(loss).mean())
    own = torch.stack([loss, l0, error.square().sum(), spread.square().sum()])
    loss, l0, left, whole = processes.mean(own)
    return {"train/loss": loss, "train/fvu": left / whole, "train/l0": l0}
