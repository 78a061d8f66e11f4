"""The few hot operations on k-sparse codes: sparse autograd on a CPU, Triton or torch on a GPU.

On a GPU where Triton is installed its kernels do all but `batch_topk_layer` and `threshold_layer`,
which are dense there, and all in float64. Without Triton everything is dense there.

All compute in the dtype of their tensors, also inside autocast: a code is worth its 32 bits.

Legend: n rows, m atoms, d width, k kept codes per row, p codes that a layer starts from,
c candidates per row.
"""

from __future__ import annotations

import functools
from functools import partial
from types import ModuleType

import torch
from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.kernels import batch, layers, reference, sparse
from dictlearn.kernels import selection as selecting
from dictlearn.kernels.sheets import Layer, is_fast

__all__ = [
    "batch_topk_layer",
    "reconstruct",
    "restricted_layer",
    "screen",
    "threshold_layer",
    "top_indices",
    "topk_layer",
]

Pairs = tuple[Tensor, Tensor]
"""Values and int64 indices `[n, p]` of codes; an index may occur more than once in a row."""


def reconstruct(codes: Codes, atoms: Tensor) -> Tensor:
    """Return `x_hat = a Phi`, `[n, d]`, of dense or k-sparse codes over `atoms: [m, d]`.

    A place of k-sparse codes whose value is 0 is empty: on a CPU it gets no gradient.
    """
    if codes.indices is None:
        return codes.values @ atoms
    with torch.autocast(atoms.device.type, enabled=False):
        if _is_host(atoms):
            decoded: Tensor = sparse.Decode.apply(  # type: ignore[no-untyped-call]
                codes.values, codes.indices, atoms
            )
            return decoded
        module = _triton(atoms) or reference
        decoded = module.decode(codes.values, codes.indices, atoms)
        return decoded


def topk_layer(
    residual: Tensor,
    weight: Tensor,
    threshold: Tensor,
    k: int,
    previous: Pairs | None = None,
    selection: str = "auto",
) -> Codes:
    """Return the `k` largest of `relu(a_previous + residual weight^T - threshold)` per row.

    Args:
        residual: `[n, d]`.
        weight: analysis matrix `[m, d]`.
        threshold: `[m]`.
        k: codes kept per row.
        previous: the codes that the layer starts from, zero if None.
        selection: `fast` chooses on scores in bfloat16, of which the best 5/4 k are computed
            anew in float32 and the k largest kept; `exact` chooses on scores in the dtype of
            the weights; `auto` is fast where the processor multiplies bfloat16 matrices: in 0.6
            of the time more than 99.9 % of rows of hidden states keep the same atoms; scores
            that lie many of their standard deviations from 0 want `exact` (see
            `layers.screened`). What is kept has exact values either way. On a GPU `auto` is
            fast with Triton, and always exact without.

    Raises:
        InputError: `selection` is none of these.
    """
    fast = is_fast(selection, weight)
    with torch.autocast(weight.device.type, enabled=False):
        if _is_host(weight):
            choose = partial(layers.choose_top, k=k, fast=fast)
            return _sparse(residual, weight, threshold, previous, choose)
        given = (residual, weight, threshold, k, previous)
        if (module := _triton(weight)) is not None:
            values, indices = module.topk_layer(*given, fast=selection != "exact")
        else:
            values, indices = reference.topk_layer(*given)
    return Codes(values, indices, len(weight))


def batch_topk_layer(
    residual: Tensor,
    weight: Tensor,
    threshold: Tensor,
    k: int,
    previous: Pairs | None = None,
    selection: str = "auto",
) -> Codes:
    """Return the `n k` largest of `relu(a_previous + residual weight^T - threshold)` in all.

    Rows keep as many as they deserve (Bussmann et al. 2024, BatchTopK). On a CPU the codes are
    k-sparse, padded with zeros to the fullest row; on a GPU dense, so that the host need not
    wait for that number.

    Args:
        residual: `[n, d]`.
        weight: analysis matrix `[m, d]`.
        threshold: `[m]`.
        k: codes kept per row in the mean.
        previous: the codes that the layer starts from, zero if None.
        selection: see `topk_layer`.

    Raises:
        InputError: `selection` is none of those.
    """
    fast = is_fast(selection, weight)
    with torch.autocast(weight.device.type, enabled=False):
        if _is_host(weight):
            choose = partial(batch.choose_batch, k=k, fast=fast)
            return _sparse(residual, weight, threshold, previous, choose)
        dense = reference.batch_topk_layer(residual, weight, threshold, k, previous)
    return Codes.from_dense(dense)


def threshold_layer(
    residual: Tensor,
    weight: Tensor,
    threshold: Tensor,
    cut: Tensor | float,
    previous: Pairs | None = None,
    selection: str = "auto",
) -> Codes:
    """Return `relu(a_previous + residual weight^T - threshold)` where above `cut`, else 0.

    The values are not lowered by the cut, which gets no gradient. On a CPU the codes are
    k-sparse, padded to the fullest row, unless so many are kept that dense ones are faster.

    Args:
        residual: `[n, d]`.
        weight: analysis matrix `[m, d]`.
        threshold: `[m]`.
        cut: a number, or one for every atom, `[m]`; below 0 it is 0.
        previous: the codes that the layer starts from, zero if None.
        selection: see `topk_layer`.

    Raises:
        InputError: `selection` is none of those.
    """
    fast = is_fast(selection, weight)
    floor = cut.detach().to(weight) if isinstance(cut, Tensor) else weight.new_full((), cut)
    floor = floor.clamp_min(0)
    with torch.autocast(weight.device.type, enabled=False):
        if _is_host(weight):
            given = Layer(residual, weight, threshold, *(previous or (None, None)))
            if batch.is_sparse(given, floor):
                choose = partial(batch.choose_above, cut=floor, fast=fast)
                return _sparse(residual, weight, threshold, previous, choose)
        dense = reference.threshold_layer(residual, weight, threshold, floor, previous)
    return Codes.from_dense(dense)


def restricted_layer(
    residual: Tensor,
    weight: Tensor,
    threshold: Tensor,
    k: int,
    candidates: Tensor,
    previous: Pairs | None = None,
) -> Codes:
    """Return the `k` largest of `relu(a_previous + residual weight^T - threshold)` per row,
    of `candidates` alone.

    Only their scores are computed, `c / m` of the products of `topk_layer`; on a GPU without
    Triton all are.

    Args:
        residual: `[n, d]`.
        weight: analysis matrix `[m, d]`.
        threshold: `[m]`.
        k: codes kept per row, at most `c`.
        candidates: int64 `[n, c]`, distinct within a row, as from `screen`.
        previous: the codes that the layer starts from, zero if None; those of other atoms are
            dropped.
    """  # noqa: D205
    with torch.autocast(weight.device.type, enabled=False):
        if _is_host(weight):
            choose = partial(layers.choose_among, k=k, candidates=candidates)
            return _sparse(residual, weight, threshold, previous, choose)
        module = _triton(weight) or reference
        values, indices = module.restricted_layer(
            residual, weight, threshold, k, candidates, previous
        )
    return Codes(values, indices, len(weight))


@torch.no_grad()
def screen(
    residual: Tensor,
    weight: Tensor,
    threshold: Tensor,
    c: int,
    previous: Pairs | None = None,
) -> Tensor:
    """Return the `c` atoms of every row with the largest scores of `topk_layer`.

    In bfloat16 where that is faster: candidates need not be exact.

    Args:
        residual: `[n, d]`.
        weight: analysis matrix `[m, d]`.
        threshold: `[m]`.
        c: how many, at most `m`.
        previous: the codes that the layer starts from, zero if None.

    Returns:
        int64 `[n, c]`, distinct within a row, without a gradient.
    """
    with torch.autocast(weight.device.type, enabled=False):
        if _is_host(weight):
            given = Layer(residual, weight, threshold, *(previous or (None, None)))
            if is_fast("auto", weight):
                return layers.screened(given, c)
            return layers.choose_top(given, c, fast=False)[1]
        module = _triton(weight) or reference
        chosen: Tensor = module.topk_layer(residual, weight, threshold, c, previous)[1]
        return chosen


def _sparse(
    residual: Tensor,
    weight: Tensor,
    threshold: Tensor,
    previous: Pairs | None,
    choose: layers.Choose,
) -> Codes:
    start = (None, None) if previous is None else previous
    values, indices = layers.SparseLayer.apply(  # type: ignore[no-untyped-call]
        residual, weight, threshold, *start, choose
    )
    return Codes(values, indices, len(weight))


@torch.no_grad()
def top_indices(scores: Tensor, k: int) -> Tensor:
    """Return the places of the `k` largest entries of every row of `[n, m]`, in no order.

    Args:
        scores: `[n, m]`; int16 too, see `selection.sortable`.
        k: how many, at most `m`.

    Returns:
        int64 `[n, k]`, distinct within a row.
    """
    module = _triton(scores) if scores.is_floating_point() else None
    chosen: Tensor = (module or selecting).top_indices(scores, k)
    return chosen


def _is_host(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def _triton(tensor: Tensor) -> ModuleType | None:
    """Return the GPU kernels where they can work on a tensor like this one."""
    if tensor.device.type != "cuda" or tensor.dtype == torch.float64:
        return None
    return _triton_path()


@functools.cache
def _triton_path() -> ModuleType | None:
    from dictlearn.kernels import triton_path

    return triton_path if triton_path.available() else None
