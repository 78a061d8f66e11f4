"""What the processes of a run know together; of one process everything is returned as it is.

All processes of a group call the same functions in the same order, whatever their own rows are.
Without a group they are those of `among`, and outside of it all processes of the run.

Legend: n rows of this process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from torch import Tensor, distributed, nn

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

T = TypeVar("T")

DIGIT = 11
"""Bits that one exchange of `kth_largest` decides: the counts of 2,048 digits are 16 kB."""


_AMONG: ContextVar[ProcessGroup | None] = ContextVar("among", default=None)


@contextmanager
def among(group: ProcessGroup | None) -> Iterator[None]:
    """Let a group be the processes that share a batch out, where others see the same rows.

    Args:
        group: what the functions of this module take without a group; None: all processes.
    """
    token = _AMONG.set(group)
    try:
        yield
    finally:
        _AMONG.reset(token)


def world_size(group: ProcessGroup | None = None) -> int:
    """Return how many processes there are in a group."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size(_of(group))
    return 1


def rank(group: ProcessGroup | None = None) -> int:
    """Return the number of this process within a group, counted from 0."""
    return distributed.get_rank(_of(group)) if world_size(group) > 1 else 0


@torch.no_grad()
def total(value: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """Return the sum of a tensor over the processes, without a gradient."""
    return _reduced(value, distributed.ReduceOp.SUM, group) if world_size(group) > 1 else value


@torch.no_grad()
def mean(value: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """Return the mean of a tensor over the processes, without a gradient."""
    world = world_size(group)
    return total(value, group) / world if world > 1 else value


@torch.no_grad()
def smallest(value: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """Return the entrywise smallest of the processes' tensors."""
    return _reduced(value, distributed.ReduceOp.MIN, group) if world_size(group) > 1 else value


@torch.no_grad()
def largest(value: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """Return the entrywise largest of the processes' tensors."""
    return _reduced(value, distributed.ReduceOp.MAX, group) if world_size(group) > 1 else value


@torch.no_grad()
def gathered(value: Tensor, group: ProcessGroup | None = None, dim: int = 0) -> Tensor:
    """Return the tensors of all processes, of one shape, one after the other along `dim`.

    Batches that are put together so are the batch of one process: see `Share.of`.
    """
    world = world_size(group)
    if world == 1:
        return value
    mine = value.detach().contiguous()
    parts = [torch.empty_like(mine) for _ in range(world)]
    distributed.all_gather(parts, mine, group=_of(group))
    return torch.cat(parts, dim)


@torch.no_grad()
def rows_of_all(rows: Tensor, chosen: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """Return some of the rows of all processes, which hold equally many.

    Args:
        rows: `[n, d]` of this process.
        chosen: places in what `gathered` would return, int64 `[p]`, the same on all processes.
        group: the processes.

    Returns:
        `[p, d]`, the same on all processes; only that is sent.
    """
    if world_size(group) == 1:
        return rows[chosen]
    place = chosen - rank(group) * len(rows)
    mine = (place >= 0) & (place < len(rows))
    found = rows[place.clamp(0, len(rows) - 1)]
    return total(torch.where(mine[:, None], found, 0), group)


def slope_zero(module: nn.Module) -> Tensor | int:
    """Return 0: data parallel training wants every parameter in every loss, if with slope zero."""
    return sum(0 * parameter.sum() for parameter in module.parameters())


def union(items: frozenset[T], group: ProcessGroup | None = None) -> frozenset[T]:
    """Return what any of the processes has."""
    if (world := world_size(group)) == 1:
        return items
    parts: list[frozenset[T]] = [frozenset()] * world
    distributed.all_gather_object(parts, items, group=_of(group))
    return frozenset().union(*parts)


class Kth(NamedTuple):
    """The k-th largest value.

    Attributes:
        value: 0-dimensional; 0 if fewer than k are positive.
        ties: how many of the entries equal to it are among the k largest, 0-dimensional.
    """

    value: Tensor
    ties: Tensor


@torch.no_grad()
def kth_largest(values: Tensor, share: int, group: ProcessGroup | None = None) -> Kth:
    """Return the k-th largest positive value of all processes, exactly, and without their values.

    Positive floats are ordered as their bits are, read as whole numbers. These are found a digit
    after the other from how often every digit occurs (radix selection), which is all that is sent.

    Args:
        values: of this process, any shape and number.
        share: its share of k, which is the sum over the processes.
        group: the processes.
    """
    precise = values.to(torch.promote_types(values.dtype, torch.float32)).flatten()
    whole, left = (torch.int64, 63) if precise.dtype == torch.float64 else (torch.int32, 31)
    bits = precise.view(whole)
    inside = bits > 0
    there = inside.sum()
    wanted, there = total(torch.stack([torch.full_like(there, share), there]), group)
    enough, found = there >= wanted, torch.zeros_like(wanted)
    while left > 0:
        shift = max(0, left - DIGIT)
        base = 2 ** (left - shift)
        digits = (bits >> shift) & (base - 1)
        # From the largest digit downwards, how many values have been met.
        met = total(_counts(digits, inside, base), group).flip(0).cumsum(0)
        place = torch.searchsorted(met, wanted).clamp_max(base - 1)
        wanted = wanted - torch.where(place > 0, met.take((place - 1).clamp_min(0)), 0)
        digit = base - 1 - place
        found = found | (digit << shift)
        inside &= digits == digit
        left = shift
    value = found.to(whole).view(precise.dtype)
    return Kth(torch.where(enough, value, 0).to(values.dtype), torch.where(enough, wanted, 0))


@torch.no_grad()
def among_largest(values: Tensor, share: int, group: ProcessGroup | None = None) -> Tensor:
    """Return which values are among the k largest positive ones of all processes, bool.

    Of equal ones, of which not all can be, those of the first processes are, and of a process
    its first ones.

    Args:
        values: of this process, any shape and number.
        share: its share of k, which is the sum over the processes.
        group: the processes.
    """
    kth = kth_largest(values, share, group)
    equal = (values == kth.value) & (values > 0)
    before = gathered(equal.sum()[None], group)[: rank(group)].sum()
    first = equal.flatten().cumsum(0).view_as(equal) <= kth.ties - before
    return (values > kth.value) | (equal & first)


def _counts(digits: Tensor, inside: Tensor, base: int) -> Tensor:
    """Return how often every digit occurs inside, int64 `[base]`; no host waits for a device."""
    # What is outside adds zeros all over the place: at one address they would queue.
    anywhere = torch.arange(len(digits), dtype=digits.dtype, device=digits.device) & (base - 1)
    counts = torch.zeros(base, dtype=torch.int32, device=digits.device)
    return counts.index_add_(0, torch.where(inside, digits, anywhere), inside.int()).long()


def _reduced(
    value: Tensor, how: distributed.ReduceOp.RedOpType, group: ProcessGroup | None
) -> Tensor:
    value = value.detach().clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(value, how, group=_of(group))
    return value


def _of(group: ProcessGroup | None) -> ProcessGroup | None:
    return _AMONG.get() if group is None else group
