"""Which of the codes that were found are kept, also where every process found those of its atoms.

Legend: n rows, p places of codes.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup

from dictlearn import processes
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


def top_of_batch(codes: Codes, share: int, shards: Processes) -> Codes:
    """Keep the largest positive codes of the batch, over all shards and all rows.

    Args:
        codes: over the atoms of this process, those that may be among them.
        share: how many the rows of this process add to their number.
        shards: the processes that hold the atoms together.
    """
    if shards.alone:
        return codes
    mine = _counted_once(share, shards)
    return packed(codes, processes.among_largest(codes.values.detach(), *mine))


@torch.no_grad()
def kth_largest(values: Tensor, share: int, shards: Processes) -> Tensor:
    """Return the k-th largest value of a batch over all shards, 0-dimensional.

    Of several processes k is the sum of the shares of those with rows of their own; then it is 0
    if fewer values are positive.
    """
    if not shards.alone:
        return processes.kth_largest(values, *_counted_once(share, shards)).value
    if processes.world_size() > 1:
        return processes.kth_largest(values, share).value
    return values.flatten().kthvalue(values.numel() - share + 1).values


def _counted_once(share: int, shards: Processes) -> tuple[int, ProcessGroup | None]:
    """Return the share of this process among all of the run: rows count in the first shard."""
    return share if shards.rank == 0 else 0, distributed.group.WORLD
