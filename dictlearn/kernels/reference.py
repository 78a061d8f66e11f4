"""The plain, dense form of every kernel: what it must equal, and what runs on a GPU.

Legend: n rows, m atoms, d width, k kept codes per row, p codes that a layer starts from.
"""

from __future__ import annotations

import torch
from torch import Tensor

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
    scores = torch.addmm(-threshold, residual, weight.T)
    if previous is not None:
        scores = scores.scatter_add(1, previous[1], previous[0])
    indices = top_indices(scores, k)
    return torch.relu(scores.gather(1, indices)), indices
