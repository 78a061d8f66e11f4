"""Codes in the order of their atoms, so that every atom finds its own: plain torch, no wait.

Legend: n rows, m atoms, k codes per row.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class ByAtom(NamedTuple):
    """The n * k codes sorted by atom, those of one atom in the order of their rows."""

    atoms: Tensor
    """int32 `[n * k]`, ascending."""
    weights: Tensor
    """`[n * k]`: the value of each code."""
    sources: Tensor
    """int64 `[n * k]`: the row of each code."""
    offsets: Tensor
    """int64 `[m + 1]`: the codes of atom j are those from `offsets[j]` to `offsets[j + 1]`."""


def by_atom(values: Tensor, indices: Tensor, n_atoms: int) -> ByAtom:
    """Sort codes `[n, k]` by atom; stable, so that every sum over them is repeatable.

    `torch.bincount` would count the codes of each atom but makes the host wait; a binary search
    in the sorted atoms does not.
    """
    atoms, order = indices.reshape(-1).to(torch.int32).sort(stable=True)
    edges = torch.arange(n_atoms + 1, dtype=torch.int32, device=atoms.device)
    return ByAtom(
        atoms,
        values.reshape(-1).index_select(0, order),
        order.div(max(indices.shape[1], 1), rounding_mode="floor"),
        torch.searchsorted(atoms, edges),
    )
