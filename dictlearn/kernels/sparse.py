"""CPU kernels whose backward touches only the k kept codes of every row.

Legend: n rows, m atoms, d width, k kept codes per row, p codes that a layer starts from.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dictlearn.kernels.selection import top_indices


def combine(values: Tensor, indices: Tensor, table: Tensor) -> Tensor:
    """Return `sum_j values[i, j] * table[indices[i, j]]`, `[n, d]`."""
    return functional.embedding_bag(indices, table, per_sample_weights=values, mode="sum")


def products(rows: Tensor, table: Tensor, indices: Tensor) -> Tensor:
    """Return `<rows[i], table[indices[i, j]]>`, `[n, k]`, without the other `n (m - k)` products.

    `sampled_addmm` here takes 1/30 of the time of gathering `[n, k, d]`.
    """
    n, k = indices.shape
    _accept_sparse_beta()
    starts = torch.arange(0, n * k + 1, k)
    places = torch.sparse_csr_tensor(
        starts,
        indices.reshape(-1),
        rows.new_zeros(n * k),
        size=(n, len(table)),
        check_invariants=False,
    )
    sampled: Tensor = torch.sparse.sampled_addmm(places, rows.contiguous(), table.T, beta=0.0)
    return sampled.values().view(n, k)


def outer_sum(values: Tensor, indices: Tensor, rows: Tensor, n_atoms: int) -> Tensor:
    """Return `codes^T rows`, `[m, d]`: for every atom the sum of `value * row` over its rows.

    The codes are sorted by atom, so that each atom sums its own rows: neither a dense product
    nor an `index_add_` of `[n, k, d]` (1/8 of the time of the first).
    """
    flat = indices.reshape(-1)
    order = flat.to(torch.int32).argsort(stable=True)
    counts = torch.bincount(flat, minlength=n_atoms)
    return functional.embedding_bag(
        order.div(indices.shape[1], rounding_mode="floor"),
        rows,
        counts.cumsum(0) - counts,
        mode="sum",
        per_sample_weights=values.reshape(-1)[order],
    )


@functools.cache
def _accept_sparse_beta() -> None:
    """Take torch's once-a-process note that CSR tensors are beta, so that no user sees it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        empty = torch.zeros(0, dtype=torch.int64)
        torch.sparse_csr_tensor(torch.zeros(2, dtype=torch.int64), empty, torch.zeros(0), (1, 1))


class Decode(torch.autograd.Function):
    """`x_hat = a Phi` of k-sparse codes; see `reference.decode`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, indices: Tensor, atoms: Tensor) -> Tensor:
        """Return `[n, d]`."""
        ctx.save_for_backward(values, indices, atoms)
        return combine(values, indices, atoms)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        """Return the gradients of the values `[n, k]` and of the atoms `[m, d]`."""
        values, indices, atoms = ctx.saved_tensors
        grad = grad.contiguous()
        for_values = products(grad, atoms, indices) if ctx.needs_input_grad[0] else None
        for_atoms = None
        if ctx.needs_input_grad[2]:
            for_atoms = outer_sum(values, indices, grad, len(atoms))
        return for_values, None, for_atoms


class TopKLayer(torch.autograd.Function):
    """One proximal-gradient layer that keeps k codes; see `reference.topk_layer`."""

    @staticmethod
    def forward(
        ctx: Any,
        residual: Tensor,
        weight: Tensor,
        threshold: Tensor,
        k: int,
        values: Tensor | None,
        indices: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return the kept values and their indices, `[n, k]`."""
        scores = torch.addmm(threshold, residual, weight.T, beta=-1)
        if values is not None and indices is not None:
            scores.scatter_add_(1, indices, values)
        chosen = top_indices(scores, k)
        kept = scores.gather(1, chosen).relu_()
        ctx.mark_non_differentiable(chosen)
        ctx.save_for_backward(residual, weight, kept, chosen, indices)
        ctx.sheet = None if indices is None else scores
        return kept, chosen

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        """Return the gradients of residual, weight, threshold and the previous values."""
        residual, weight, kept, chosen, indices = ctx.saved_tensors
        wants_residual, wants_weight, wants_threshold, _k, wants_values, _i = ctx.needs_input_grad
        grad = grad * (kept > 0)
        for_residual = combine(grad, chosen, weight) if wants_residual else None
        for_weight = outer_sum(grad, chosen, residual, len(weight)) if wants_weight else None
        for_threshold = None
        if wants_threshold:
            for_threshold = grad.new_zeros(len(weight))
            for_threshold.index_add_(0, chosen.reshape(-1), grad.reshape(-1), alpha=-1)
        for_values = _gathered(ctx.sheet, grad, chosen, indices) if wants_values else None
        return for_residual, for_weight, for_threshold, None, for_values, None


def _gathered(sheet: Tensor, values: Tensor, indices: Tensor, wanted: Tensor) -> Tensor:
    """Return the codes at other places, `[n, p]`, zero where nothing was kept.

    The pre-activations' memory `[n, m]` serves as the sheet that codes are written on and read
    from: only the places that are read are zeroed, and no fresh pages are touched.
    """
    sheet.scatter_(1, wanted, 0.0).scatter_(1, indices, values)
    return sheet.gather(1, wanted)
