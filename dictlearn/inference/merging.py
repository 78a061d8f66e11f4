"""Which of the codes that were found are kept, also where every process found those of its atoms.

Legend: n rows, p places of codes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.kernels import top_indices
from dictlearn.mesh import Processes


def packed(codes: Codes, kept: Tensor) -> Codes:
    """Return k-sparse codes of the entries `kept: [n, p]`, padded to about the fullest row.

    On a GPU they stay as wide as they were, so that the host need not wait for that number.
    """
    values = codes.values * kept
    if kept.device.type != "cpu" or codes.indices is None:
        return codes._replace(values=values)
    width = max(1, int(kept.sum(1).amax()))
    if 4 * width > 3 * kept.shape[1]:  # dearer to pack than to carry along
        return codes._replace(values=values)
    places = top_indices(values.detach(), width)
    return Codes(values.gather(1, places), codes.indices.gather(1, places), codes.n_atoms)


def top_of_rows(codes: Codes, k: int, shards: Processes) -> Codes:
    """Keep of every row the `k` largest codes of all shards, of which each has its own largest.

    Of equal ones those of the first shards are kept.
    """
    return codes if shards.alone else packed(codes, among_largest(codes.values, k, shards))


@torch.no_grad()
def among_largest(values: Tensor, k: int, shards: Processes) -> Tensor:
    """Return which of `values: [n, p]` are among the `k` largest of their row of all shards."""
    everyone = shards.joined(values, 1)
    order = everyone.sort(dim=1, descending=True, stable=True).indices[:, :k]
    kept = torch.zeros_like(everyone, dtype=torch.bool).scatter_(1, order, True)
    return kept[:, shards.place(everyone.shape[1])]


def top_of_batch(codes: Codes, count: int, shards: Processes) -> Codes:
    """Keep the `count` largest positive codes of all shards, of which each has its own largest."""
    if shards.alone:
        return codes
    values = codes.values.detach()
    least = smallest_of(values, count, shards)
    return packed(codes, (values >= least) & (values > 0))


@torch.no_grad()
def smallest_of(values: Tensor, count: int, shards: Processes) -> Tensor:
    """Return the `count`-th largest number of all shards, or `-inf` if there are fewer."""
    mine = values.detach().flatten()
    if shards.alone:
        return mine.kthvalue(len(mine) - count + 1).values
    top = mine.new_full((count,), -torch.inf)
    best = mine.topk(min(count, len(mine)), sorted=False).values
    top[: len(best)] = best
    everyone = shards.joined(top)
    return everyone.kthvalue(len(everyone) - count + 1).values
