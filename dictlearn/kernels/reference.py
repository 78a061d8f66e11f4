"""The plain, dense form of every kernel: what it must equal, and the way of devices without one.

Legend: n rows, m atoms, d width, k kept codes per row, p codes that a layer starts from.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dictlearn import processes
from dictlearn.kernels.selection import top_indices


def decode(values: Tensor, indices: Tensor, atoms: Tensor) -> Tensor:
    """Return `x_hat = a Phi`, `[n, d]`.

    Args:
        values: codes `[n, k]`.
        indices: their atoms, int64 `[n, k]`.
        atoms: `[m, d]`.
    """
    dense = values.new_zeros(len(values), len(atoms)).scatter_add(1, indices, values)
    return dense @ atoms


def topk_layer(
    residual: Tensor,
    weight: Tensor,
    threshold: Tensor,
    k: int,
    previous: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the `k` largest of `relu(a_previous + residual weight^T - threshold)` per row.

    Args:
        residual: `[n, d]`.
        weight: analysis matrix `[m, d]`.
        threshold: `[m]`.
        k: codes kept per row.
        previous: values and int64 indices `[n, p]` of the codes that the layer starts from;
            an index may occur more than once in a row, its values are summed.

    Returns:
        Values and int64 indices, `[n, k]`.
    """
    scores = _scores(residual, weight, threshold, previous)
    indices = top_indices(scores, k)
    return torch.relu(scores.gather(1, indices)), indices


def batch_topk_layer(
    residual: Tensor,
    weight: Tensor,
    threshold: Tensor,
    k: int,
    previous: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Return dense codes `[n, m]`: of the rectified scores the `n k` largest; see `topk_layer`.

    Of several processes, those of the batch that they share.
    """
    scores = torch.relu(_scores(residual, weight, threshold, previous))
    if processes.world_size() > 1:
        return torch.where(processes.among_largest(scores, len(scores) * k), scores, 0.0)
    chosen = scores.view(-1).topk(min(scores.numel(), len(scores) * k), sorted=False).indices
    kept = torch.zeros_like(scores, dtype=torch.bool).view(-1).index_fill_(0, chosen, True)
    return torch.where(kept.view_as(scores), scores, 0.0)


def threshold_layer(
    residual: Tensor,
    weight: Tensor,
    threshold: Tensor,
    cut: Tensor,
    previous: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Return dense codes `[n, m]`: the scores above `cut`, not below 0; see `topk_layer`."""
    scores = _scores(residual, weight, threshold, previous)
    return torch.where(scores > cut, scores, 0.0)


def restricted_layer(
    residual: Tensor,
    weight: Tensor,
    threshold: Tensor,
    k: int,
    candidates: Tensor,
    previous: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return what `topk_layer` returns, of the candidates `[n, c]` alone."""
    scores = _scores(residual, weight, threshold, previous).gather(1, candidates)
    best = top_indices(scores, k)
    return torch.relu(scores.gather(1, best)), candidates.gather(1, best)


def _scores(
    residual: Tensor,
    weight: Tensor,
    threshold: Tensor,
    previous: tuple[Tensor, Tensor] | None,
) -> Tensor:
    scores = torch.addmm(-threshold, residual, weight.T)
    return scores if previous is None else scores.scatter_add(1, previous[1], previous[0])
