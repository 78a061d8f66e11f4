"""CPU products with k-sparse codes, which touch only the kept codes of every row.

Legend: n rows, m atoms, d width, k places per row, z places in all.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

SHEET = 2**18
"""Entries of the sheet that codes are compared on: 1 MiB, which stays in the cache."""


class Places(NamedTuple):
    """Which places of an `[n, m]` matrix are meant, row by row.

    Attributes:
        starts: where every row begins in `columns`, and its end, int64 `[n + 1]`.
        columns: int64 `[z]`.
        filled: bool `[n, k]`: which entries of a padded `[n, k]` these are; None if all, or if
            there is no such.
    """

    starts: Tensor
    columns: Tensor
    filled: Tensor | None

    def rows(self) -> Tensor:
        """Return the row of every place, int64 `[z]`."""
        return torch.arange(len(self.starts) - 1).repeat_interleave(self.starts.diff())

    def flat(self, padded: Tensor) -> Tensor:
        """Return the entries `[z]` of a padded `[n, k]`."""
        return padded.reshape(-1) if self.filled is None else padded[self.filled]

    def padded(self, flat: Tensor, shape: torch.Size) -> Tensor:
        """Return entries `[z]` as `[n, k]`, zero where there is none."""
        if self.filled is None:
            return flat.view(shape)
        return flat.new_zeros(shape).masked_scatter_(self.filled, flat)


def places(indices: Tensor, wanted: Tensor | None = None) -> Places:
    """Return the places of k-sparse codes: the wanted ones, if most are not.

    Rows of a batch top-k are padded to the fullest of them, on hidden states 8 times the mean.

    Args:
        indices: int64 `[n, k]`.
        wanted: bool `[n, k]`, which of them matter; None for all.
    """
    n, k = indices.shape
    if wanted is None or 2 * int(wanted.sum()) >= wanted.numel():
        return Places(torch.arange(0, n * k + 1, max(k, 1)), indices.reshape(-1), None)
    starts = torch.zeros(n + 1, dtype=torch.int64)
    torch.cumsum(wanted.sum(1), 0, out=starts[1:])
    return Places(starts, indices[wanted], wanted)


def combine(values: Tensor, where: Places, table: Tensor) -> Tensor:
    """Return `codes table`, `[n, d]`.

    Args:
        values: of the codes, `[z]`.
        where: their places.
        table: `[m, d]`.
    """
    if len(values) == 0:
        return table.new_zeros(len(where.starts) - 1, table.shape[1])
    return functional.embedding_bag(
        where.columns,
        table,
        where.starts,
        per_sample_weights=values,
        mode="sum",
        include_last_offset=True,
    )


def products(rows: Tensor, table: Tensor, where: Places) -> Tensor:
    """Return `<rows[i], table[j]>` at every place `(i, j)`, `[z]`, and no other products.

    `sampled_addmm` here takes 1/30 of the time of gathering `[z, d]`.
    """
    _accept_sparse_beta()
    at = torch.sparse_csr_tensor(
        where.starts,
        where.columns,
        rows.new_zeros(len(where.columns)),
        size=(len(rows), len(table)),
        check_invariants=False,
    )
    sampled: Tensor = torch.sparse.sampled_addmm(at, rows.contiguous(), table.T, beta=0.0)
    return sampled.values()


def outer_sum(values: Tensor, where: Places, rows: Tensor, n_atoms: int) -> Tensor:
    """Return `codes^T rows`, `[m, d]`: for every atom the sum of `value * row` over its rows.

    The codes are sorted by atom, so that each atom sums its own rows: neither a dense product
    nor an `index_add_` of `[z, d]` (1/8 of the time of the first).
    """
    if len(values) == 0:
        return rows.new_zeros(n_atoms, rows.shape[1])
    order = where.columns.to(torch.int32).argsort(stable=True)
    counts = torch.bincount(where.columns, minlength=n_atoms)
    return functional.embedding_bag(
        where.rows()[order],
        rows,
        counts.cumsum(0) - counts,
        mode="sum",
        per_sample_weights=values[order],
    )


def atom_sum(values: Tensor, where: Places, n_atoms: int) -> Tensor:
    """Return the sum of the codes of every atom, `[m]`."""
    return values.new_zeros(n_atoms).index_add_(0, where.columns, values)


def matched(values: Tensor, indices: Tensor, where: Places, n_atoms: int) -> Tensor:
    """Return the codes at other places, `[z]`, zero where they have none.

    A few rows at a time are written on a sheet `[rows, m]` and read from it.

    Args:
        values: codes `[n, p]`.
        indices: their atoms `[n, p]`; values of repeated ones are summed.
        where: the places that are read.
        n_atoms: `m`.
    """
    n, step = len(values), max(16, SHEET // n_atoms)
    found = values.new_empty(len(where.columns))
    sheet = values.new_zeros(min(n, step), n_atoms)
    address = where.rows().remainder_(step).mul_(n_atoms).add_(where.columns)
    bounds = where.starts[::step].tolist()
    bounds += [] if n % step == 0 else [len(found)]
    for number, start in enumerate(range(0, n, step)):
        there = slice(bounds[number], bounds[number + 1])
        part = sheet[: min(step, n - start)]
        at = indices[start : start + step]
        part.scatter_add_(1, at, values[start : start + step])
        found[there] = sheet.view(-1)[address[there]]
        part.scatter_(1, at, 0.0)
    return found


@functools.cache
def _accept_sparse_beta() -> None:
    """Take torch's once-a-process note that CSR tensors are beta, so that no user sees it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        empty = torch.zeros(0, dtype=torch.int64)
        torch.sparse_csr_tensor(torch.zeros(2, dtype=torch.int64), empty, torch.zeros(0), (1, 1))


class Decode(torch.autograd.Function):
    """`x_hat = a Phi` of k-sparse codes; see `reference.decode`.

    A place whose value is 0 is empty: nothing is learned there.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, indices: Tensor, atoms: Tensor) -> Tensor:
        """Return `[n, d]`."""
        ctx.save_for_backward(values, indices, atoms)
        where = places(indices, values != 0)
        return combine(where.flat(values), where, atoms)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        """Return the gradients of the values `[n, k]` and of the atoms `[m, d]`."""
        values, indices, atoms = ctx.saved_tensors
        filled = values != 0
        where = places(indices, filled)
        grad = grad.contiguous()
        for_values = for_atoms = None
        if ctx.needs_input_grad[0]:
            for_values = where.padded(products(grad, atoms, where), values.shape).mul_(filled)
        if ctx.needs_input_grad[2]:
            for_atoms = outer_sum(where.flat(values), where, grad, len(atoms))
        return for_values, None, for_atoms
