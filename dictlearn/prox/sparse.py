"""Sparsities that count codes instead of pricing them.

Legend: n rows, m atoms, k kept codes per row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.errors import InputError, whole_number
from dictlearn.prox.table import Constant


@dataclass(frozen=True)
class TopK(Constant):
    """At most `k` positive codes a row: the `k` largest positive entries are kept.

    A row with fewer than `k` positive entries keeps zeros in the places left; which of several
    equal entries is kept is not specified.

    Args:
        k: codes kept per row.

    Raises:
        InputError: `k` is not a whole number of at least 1.
    """

    k: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", whole_number("prox.k", self.k))

    @property
    def lambda_(self) -> float:
        """0: codes cost nothing, there are only few."""
        return 0.0

    @property
    def convex(self) -> bool:
        """False: the set of k-sparse codes is not convex."""
        return False

    def __call__(self, v: Tensor, threshold: Tensor | float) -> Codes:
        """Return the `k` largest entries of `relu(v - threshold)`, k-sparse."""
        lowered = v - threshold
        values, indices = lowered.topk(self.k, dim=1, sorted=False)
        return Codes(torch.relu(values), indices, v.shape[-1])

    def value(self, codes: Codes) -> Tensor:
        """Return zeros, `[n]`."""
        return codes.values.new_zeros(len(codes.values))

    def check(self, n_atoms: int) -> None:
        """Raise InputError when more codes are kept than there are atoms."""
        if self.k > n_atoms:
            raise InputError(
                f"prox.k={self.k} is more than dictionary.n_atoms={n_atoms}: "
                f"keep at most {n_atoms} codes, or learn more atoms."
            )
