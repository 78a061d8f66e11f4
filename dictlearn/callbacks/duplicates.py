"""Atoms that are nearly the same: found without ever holding all cosines.

Legend: m atoms, d width, p pairs, b rows of a block.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

BLOCK = 512
"""Atoms compared with all others at once: `[b, m]` cosines are 50 MB at m = 24,576."""


class Twins(NamedTuple):
    """Pairs of atoms of which one is enough.

    Attributes:
        kept: int64 `[p]`, the more used ones; an atom may have several twins.
        gone: int64 `[p]`, distinct, and none of them in `kept`.
    """

    kept: Tensor
    gone: Tensor


@torch.no_grad()
def find_twins(atoms: Tensor, usage: Tensor, cosine: float) -> Twins:
    """Return the atoms that have a more used one at more than `cosine`, and that one.

    Of a chain a, b, c, in which b is like a and c like b but c not like a, only b is returned:
    what c is like stays to be seen once b is another atom.

    Args:
        atoms: `[m, d]`, unit rows.
        usage: how much each is used, `[m]`; between equals the first counts as more used.
        cosine: above it two atoms are twins.
    """
    order = usage.argsort(descending=True, stable=True)
    ranked = atoms[order]
    nearest, partner = usage.new_full((len(atoms),), -2.0, dtype=atoms.dtype), order.clone()
    for first in range(0, len(atoms), BLOCK):
        rows = ranked[first : first + BLOCK]
        similar = rows @ ranked[: first + len(rows)].T
        similar.masked_fill_(torch.ones_like(similar, dtype=torch.bool).triu(first), -2.0)
        found = similar.max(1)
        nearest[first : first + len(rows)], partner[first : first + len(rows)] = found
    twin = nearest > cosine
    twin &= ~twin[partner]
    return Twins(order[partner[twin]], order[twin])


@torch.no_grad()
def merge_directions(atoms: Tensor, energy: Tensor, twins: Twins) -> Tensor:
    """Return what the kept atoms become, `[p, d]`: the mean of an atom and all its twins.

    An atom learned in pieces is nearer to the mean of the pieces, weighted by the energy of their
    codes, than to any of them. Where none was active the kept atom stays as it is.

    Args:
        atoms: `[m, d]`, unit rows.
        energy: sums of squared codes, `[m]`.
        twins: the pairs.
    """
    kept, gone = twins
    total = atoms * energy[:, None]
    total.index_add_(0, kept, total[gone])
    active = total[kept].abs().sum(1, keepdim=True) > 0
    return torch.where(active, nn.functional.normalize(total[kept], dim=1), atoms[kept])


def usage_rank(energy: Tensor, idle: Tensor) -> Tensor:
    """Return how much atoms are used as ranks `[m]`: by energy, and between equals by idleness.

    In one batch many atoms are silent; of these, those that fired longest ago are the rarest.

    Args:
        energy: sums of squared codes, `[m]`.
        idle: vectors since an atom last fired, `[m]`.
    """
    by_idle = idle.argsort(descending=True, stable=True)
    order = by_idle[energy[by_idle].argsort(stable=True)]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    return rank
