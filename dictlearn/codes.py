"""The codes of a batch, dense or k-sparse, behind one small type.

Legend: n rows, m atoms, d width, k kept codes per row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Codes(NamedTuple):
    """Codes `a` of `n` rows over `m` atoms.

    Attributes:
        values: `[n, m]` when dense, else the kept values `[n, k]` (zeros allowed).
        indices: None when dense, else the atom of every kept value, int64 `[n, k]`, distinct
            within a row.
        n_atoms: `m`.
    """

    values: Tensor
    indices: Tensor | None
    n_atoms: int

    @classmethod
    def from_dense(cls, values: Tensor) -> Codes:
        """Wrap dense codes `values: [n, m]`."""
        return cls(values, None, values.shape[-1])

    def dense(self) -> Tensor:
        """Return the codes as `[n, m]`; differentiable in the values."""
        if self.indices is None:
            return self.values
        empty = self.values.new_zeros(len(self.values), self.n_atoms)
        return empty.scatter(1, self.indices, self.values)

    def detach(self) -> Codes:
        """Return the same codes without a gradient."""
        return Codes(self.values.detach(), self.indices, self.n_atoms)

    def l0(self) -> Tensor:
        """Return the number of codes of every row that are not zero, `[n]`."""
        return (self.values != 0).sum(-1)

    def l1(self) -> Tensor:
        """Return the sum of every row's codes regardless of sign, `[n]`."""
        return self.values.abs().sum(-1)

    def sum_over_rows(self, values: Tensor) -> Tensor:
        """Sum `values` (shaped like `self.values`) per atom, `[m]`."""
        if self.indices is None:
            return values.sum(0)
        total = values.new_zeros(self.n_atoms)
        return total.index_add_(0, self.indices.flatten(), values.flatten())

    def fired(self) -> Tensor:
        """Return in how many rows every atom is active (code not zero), float `[m]`."""
        return self.sum_over_rows((self.values != 0).to(torch.float32))
