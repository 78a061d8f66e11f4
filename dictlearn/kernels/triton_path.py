"""The k-sparse operations on a GPU: Triton kernels under autograd, no wait of the host.

The dense pass of a layer runs in the matrix units in bfloat16 and only chooses: it keeps more
candidates than wanted, their scores are computed anew in float32, and of these the best are kept.
Measured on a CPU with the same roundings (MiniLM layer 4, m = 3072, 4000 rows; Gaussian,
m = 24576, 2000 rows; k = 32): with 40 candidates every row keeps what float32 keeps, with 36
0.3 % of the rows keep one other code, with 32 27 to 36 % do.

Legend: n rows, m atoms, d width, k kept codes per row, p codes that a layer starts from, c
candidates per row.
"""

from __future__ import annotations

import importlib.util
import os
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

__all__ = ["available", "decode", "restricted_layer", "top_indices", "topk_layer"]

SHEET = 1 << 27
"""Scores that exist at a time: 256 MiB in bfloat16, a chunk of 5461 rows at m = 24576."""


def available() -> bool:
    """Say whether the kernels can run: triton is there, and a GPU or triton's interpreter."""
    if importlib.util.find_spec("triton") is None:
        return False
    return torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET", "0") == "1"


def decode(values: Tensor, indices: Tensor, atoms: Tensor) -> Tensor:
    """Return `x_hat = a Phi`, differentiable in values and atoms; see `reference.decode`.

    Args:
        values: codes `[n, k]`.
        indices: their atoms, int64 `[n, k]`.
        atoms: `[m, d]`, float32, float64 or bfloat16; sums are float32 at least.

    Returns:
        `[n, d]` in the wider dtype of values and atoms.
    """
    decoded: Tensor = Decode.apply(values, indices, atoms)  # type: ignore[no-untyped-call]
    return decoded


def topk_layer(
    residual: Tensor,
    weight: Tensor,
    threshold: Tensor,
    k: int,
    previous: tuple[Tensor, Tensor] | None = None,
    fast: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return the `k` largest of `relu(a_previous + residual weight^T - threshold)` per row.

    Differentiable in residual, weight, threshold and the previous values; see
    `reference.topk_layer`.

    Args:
        residual: `[n, d]`.
        weight: analysis matrix `[m, d]`.
        threshold: `[m]`.
        k: codes kept per row, at most m.
        previous: values and int64 indices `[n, p]` of the codes that the layer starts from;
            an index may occur more than once in a row, its values are summed.
        fast: choose candidates in bfloat16 (not in float64, nor where it is not native).

    Returns:
        Values, in the widest dtype of the three, and int64 indices, `[n, k]`.
    """
    with torch.no_grad(), _on(weight):
        candidates = _screen(residual, weight, threshold, k, previous, fast)
    return restricted_layer(residual, weight, threshold, k, candidates, previous)


def restricted_layer(
    residual: Tensor,
    weight: Tensor,
    threshold: Tensor,
    k: int,
    candidates: Tensor,
    previous: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the `k` largest of `topk_layer`'s scores among the candidates of every row.

    Args:
        residual: `[n, d]`.
        weight: analysis matrix `[m, d]`.
        threshold: `[m]`.
        k: codes kept per row, at most c.
        candidates: int64 `[n, c]`, distinct within a row.
        previous: see `topk_layer`; codes of atoms that are no candidates are dropped.

    Returns:
        Values, in the widest dtype of the three, and int64 indices, `[n, k]`.
    """
    start = (None, None) if previous is None else previous
    values, indices = TopKLayer.apply(  # type: ignore[no-untyped-call]
        residual, weight, threshold, k, candidates, *start
    )
    return values, indices


@torch.no_grad()
def top_indices(scores: Tensor, k: int) -> Tensor:
    """Return the places of the `k` largest entries of every row of `[n, m]`, int64 `[n, k]`."""
    from dictlearn.kernels.triton.select import select

    with _on(scores):
        return select(scores, k)


class Decode(torch.autograd.Function):
    """`x_hat = a Phi` of k-sparse codes; see `reference.decode`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, indices: Tensor, atoms: Tensor) -> Tensor:
        """Return `[n, d]`."""
        from dictlearn.kernels.triton.combine import combine

        ctx.save_for_backward(values, indices, atoms)
        with _on(atoms):
            return combine(values, indices, atoms)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        """Return the gradients of the values `[n, k]` and of the atoms `[m, d]`."""
        from dictlearn.kernels.triton.by_atom import by_atom
        from dictlearn.kernels.triton.outer_sum import outer_sum
        from dictlearn.kernels.triton.products import products

        values, indices, atoms = ctx.saved_tensors
        for_values = for_atoms = None
        with _on(atoms):
            if ctx.needs_input_grad[0]:
                for_values = products(grad, atoms, indices).to(values.dtype)
            if ctx.needs_input_grad[2]:
                for_atoms = outer_sum(by_atom(values, indices, len(atoms)), grad, atoms.dtype)
        return for_values, None, for_atoms


class TopKLayer(torch.autograd.Function):
    """One proximal-gradient layer that keeps k of the candidates; see `restricted_layer`."""

    @staticmethod
    def forward(
        ctx: Any,
        residual: Tensor,
        weight: Tensor,
        threshold: Tensor,
        k: int,
        candidates: Tensor,
        values: Tensor | None,
        indices: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return the kept values and their indices, `[n, k]`."""
        from dictlearn.kernels.triton.select import select

        previous = None if values is None or indices is None else (values, indices)
        with _on(weight):
            scores = _scores(residual, weight, threshold, candidates, previous)
            best = select(scores, k)
        chosen = candidates.gather(1, best)
        kept = scores.gather(1, best).relu_().to(_widest(residual, weight, threshold))
        ctx.mark_non_differentiable(chosen)
        ctx.save_for_backward(residual, weight, kept, chosen, indices)
        ctx.dtypes = threshold.dtype, kept.dtype if values is None else values.dtype
        return kept, chosen

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        """Return the gradients of residual, weight, threshold and the previous values."""
        from dictlearn.kernels.triton.by_atom import by_atom
        from dictlearn.kernels.triton.combine import combine
        from dictlearn.kernels.triton.lookup import lookup
        from dictlearn.kernels.triton.outer_sum import outer_sum
        from dictlearn.kernels.triton.totals import totals

        residual, weight, kept, chosen, indices = ctx.saved_tensors
        wants_residual, wants_weight, wants_threshold = ctx.needs_input_grad[:3]
        wants_values = ctx.needs_input_grad[5]
        grad = grad * (kept > 0)
        for_residual = for_weight = for_threshold = for_values = None
        with _on(weight):
            if wants_residual:
                for_residual = combine(grad, chosen, weight).to(residual.dtype)
            if wants_weight or wants_threshold:
                codes = by_atom(grad, chosen, len(weight))
                if wants_weight:
                    for_weight = outer_sum(codes, residual, weight.dtype)
                if wants_threshold:
                    for_threshold = totals(codes, ctx.dtypes[0]).neg_()
            if wants_values:
                for_values = lookup(grad, chosen, indices).to(ctx.dtypes[1])
        return for_residual, for_weight, for_threshold, None, None, for_values, None


def _screen(
    residual: Tensor,
    weight: Tensor,
    threshold: Tensor,
    k: int,
    previous: tuple[Tensor, Tensor] | None,
    fast: bool,
) -> Tensor:
    """Return candidates, int64 `[n, c]`: the best by a dense pass, a chunk of rows at a time.

    The fast pass is bfloat16 and leaves 5/4 k; the other is float32 or float64 and leaves k.
    """
    from dictlearn.kernels.triton.lookup import lookup
    from dictlearn.kernels.triton.select import select

    n, m = len(residual), len(weight)
    wide, dtype = k + max(8, k // 4), torch.bfloat16
    number = torch.promote_types(_widest(residual, weight, threshold), torch.float32)
    if not fast or number == torch.float64 or 2 * wide > m or not _multiplies_bfloat16(weight):
        wide, dtype = k, number
    table, bias = weight.to(dtype).T, threshold.neg().to(dtype)
    candidates = torch.empty(n, wide, dtype=torch.int64, device=weight.device)
    chunk = max(1, SHEET // m)
    for begin in range(0, n, chunk):
        rows = slice(begin, begin + chunk)
        sheet = torch.addmm(bias, residual[rows].to(dtype), table)
        if previous is not None:
            values, indices = (tensor[rows] for tensor in previous)
            # Each repeat of an index writes the same sum: no float is added atomically.
            sums = sheet.gather(1, indices) + lookup(values, indices, indices)
            sheet.scatter_(1, indices, sums.to(sheet.dtype))
        candidates[rows] = select(sheet, wide)
    return candidates


def _scores(
    residual: Tensor,
    weight: Tensor,
    threshold: Tensor,
    candidates: Tensor,
    previous: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Return `a_previous + residual weight^T - threshold` at the candidates, float32 or float64."""
    from dictlearn.kernels.triton.lookup import lookup
    from dictlearn.kernels.triton.products import products

    scores = products(residual, weight, candidates)
    scores -= threshold[candidates]
    if previous is not None:
        scores += lookup(*previous, candidates)
    return scores


def _widest(*tensors: Tensor) -> torch.dtype:
    """Return the dtype that holds all of them."""
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _multiplies_bfloat16(tensor: Tensor) -> bool:
    return not tensor.is_cuda or torch.cuda.is_bf16_supported(including_emulation=False)


def _on(tensor: Tensor) -> AbstractContextManager[None]:
    """Make the tensor's GPU the current one: Triton launches on that, wherever the data are."""
    return torch.cuda.device_of(tensor)  # type: ignore[no-untyped-call]
