"""The few hot operations on k-sparse codes: sparse autograd on a CPU, plain torch elsewhere.

Both compute in the dtype of their tensors, also inside autocast: a code is worth its 32 bits.

Legend: n rows, m atoms, d width, k kept codes per row, p codes that a layer starts from.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.kernels import reference, sparse
from dictlearn.kernels.selection import top_indices

__all__ = ["reconstruct", "top_indices", "topk_layer"]


def reconstruct(codes: Codes, atoms: Tensor) -> Tensor:
    """Return `x_hat = a Phi`, `[n, d]`, of dense or k-sparse codes over `atoms: [m, d]`."""
    if codes.indices is None:
        return codes.values @ atoms
    with torch.autocast(atoms.device.type, enabled=False):
        if atoms.device.type == "cpu":
            decoded: Tensor = sparse.Decode.apply(  # type: ignore[no-untyped-call]
                codes.values, codes.indices, atoms
            )
            return decoded
        return reference.decode(codes.values, codes.indices, atoms)


def topk_layer(
    residual: Tensor,
    weight: Tensor,
    threshold: Tensor,
    k: int,
    previous: tuple[Tensor, Tensor] | None = None,
) -> Codes:
    """Return the `k` largest of `relu(a_previous + residual weight^T - threshold)` per row.

    Args:
        residual: `[n, d]`.
        weight: analysis matrix `[m, d]`.
        threshold: `[m]`.
        k: codes kept per row.
        previous: values and int64 indices `[n, p]` of the codes that the layer starts from.
    """
    with torch.autocast(weight.device.type, enabled=False):
        if weight.device.type == "cpu":
            start = (None, None) if previous is None else previous
            values, indices = sparse.TopKLayer.apply(  # type: ignore[no-untyped-call]
                residual, weight, threshold, k, *start
            )
        else:
            values, indices = reference.topk_layer(residual, weight, threshold, k, previous)
    return Codes(values, indices, len(weight))
