"""How a pursuit learns the correlations of all atoms with the residual.

Legend: n rows, m atoms, d width, k slots per row, `G = Phi Phi^T`, r = residual.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional

GRAM_BYTES = 2**30
"""A larger Gram matrix is not made: it has 16,384 atoms in float32."""


class GramForm(NamedTuple):
    """Through `G`: a step reads the rows of `G` of the atoms held, `n k m` products.

    Attributes:
        start: `x Phi^T: [n, m]`.
        gram: `[m, m]`.
    """

    start: Tensor
    gram: Tensor

    def correlations(self, values: Tensor, indices: Tensor) -> Tensor:
        """Return `(x - a Phi) Phi^T: [n, m]`, in memory of its own.

        Args:
            values: codes `[n, k]`, 0 where a slot is empty.
            indices: their atoms, int64 `[n, k]`.
        """
        explained = combine(values, indices, self.gram)
        return torch.sub(self.start, explained, out=explained)

    def after_step(self, c: Tensor, values: Tensor, indices: Tensor) -> Tensor:
        """Return the correlations after the last code of `[n, t]` came to those of `c`."""
        return c.sub_(combine(values[:, -1:], indices[:, -1:], self.gram))

    def correlations_at(self, values: Tensor, indices: Tensor) -> Tensor:
        """Return those of the atoms that the codes refer to, `[n, k]`."""
        gram = self.gram.take(indices[:, :, None] * len(self.gram) + indices[:, None, :])
        return self.start.gather(1, indices) - (gram * values[:, None, :]).sum(-1)

    def products(self, atom: Tensor, indices: Tensor) -> Tensor:
        """Return `<phi_atom, phi_indices>`: `[n, k]` for atoms `[n]` and `[n, k]`."""
        return self.gram.take(indices + (len(self.gram) * atom)[:, None])

    def norms(self, atom: Tensor) -> Tensor:
        """Return `|phi_atom|^2` for atoms `[n]`."""
        return self.gram.diagonal()[atom]

    def rows(self, chosen: Tensor) -> Self:
        """Return the same for the rows with these numbers."""
        return self._replace(start=self.start[chosen])


class ResidualForm(NamedTuple):
    """Through the residual: `n d m` products a step, for few rows or very many atoms.

    Attributes:
        x: `[n, d]`.
        atoms: `[m, d]`.
    """

    x: Tensor
    atoms: Tensor

    def correlations(self, values: Tensor, indices: Tensor) -> Tensor:
        """See `GramForm.correlations`."""
        return (self.x - combine(values, indices, self.atoms)) @ self.atoms.T

    def after_step(self, c: Tensor, values: Tensor, indices: Tensor) -> Tensor:
        """See `GramForm.after_step`."""
        return self.correlations(values, indices)

    def correlations_at(self, values: Tensor, indices: Tensor) -> Tensor:
        """See `GramForm.correlations_at`."""
        residual = self.x - combine(values, indices, self.atoms)
        return inner_products(residual, self.atoms, indices)

    def products(self, atom: Tensor, indices: Tensor) -> Tensor:
        """See `GramForm.products`."""
        return inner_products(self.atoms[atom], self.atoms, indices)

    def norms(self, atom: Tensor) -> Tensor:
        """See `GramForm.norms`."""
        return self.atoms[atom].square().sum(-1)

    def rows(self, chosen: Tensor) -> Self:
        """See `GramForm.rows`."""
        return self._replace(x=self.x[chosen])


Form = GramForm | ResidualForm


def combine(values: Tensor, indices: Tensor, table: Tensor) -> Tensor:
    """Return `sum_j values[i, j] * table[indices[i, j]]`, `[n, width of the table]`."""
    if indices.shape[1] == 0:
        return table.new_zeros(len(indices), table.shape[1])
    return functional.embedding_bag(indices, table, per_sample_weights=values, mode="sum")


def inner_products(x: Tensor, atoms: Tensor, indices: Tensor) -> Tensor:
    """Return `<x_i, phi_indices[i, j]>`, `[n, k]`."""
    return torch.bmm(atoms[indices], x[:, :, None]).squeeze(-1)


def gram_fits(atoms: Tensor) -> bool:
    """Return whether the Gram matrix may be made."""
    return len(atoms) ** 2 * atoms.element_size() <= GRAM_BYTES


def gram_pays(n: int, k: int, atoms: Tensor) -> bool:
    """Return whether it fits, and costs less than `k` products of all rows with all atoms."""
    return gram_fits(atoms) and n * k >= len(atoms)


def largest(c: Tensor) -> tuple[Tensor, Tensor]:
    """Return value and place of the largest entry of every row, both `[n]`."""
    if c.device.type != "cpu":
        best = c.max(1)
        return best.values, best.indices
    # numpy finds it in a tenth of the time of torch's max over a dimension.
    place = torch.from_numpy(c.numpy().argmax(1))
    return c.gather(1, place[:, None]).squeeze(1), place
