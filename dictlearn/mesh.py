"""Who holds what: processes over which rows are shared out, and processes over which atoms are.

Sums, maxima and concatenations over such processes, the identity where there is only one; the
two differentiable ones are those of Megatron-LM (Shoeybi et al. 2019, section 3).

Legend: n rows, m atoms, p shards, k places of codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed

from dictlearn import processes
from dictlearn.codes import Codes


@dataclass(frozen=True)
class Processes:
    """Processes that hold parts of one thing, and this one's place among them.

    Attributes:
        rank: of this process.
        count: how many there are.
        group: through which they talk; None: all processes of the run.
    """

    rank: int = 0
    count: int = 1
    group: distributed.ProcessGroup | None = None

    @property
    def alone(self) -> bool:
        """Whether there is nobody to talk to."""
        return self.count == 1

    def sum(self, part: Tensor) -> Tensor:
        """Return the sum of all parts, with which every process computes the same.

        So the gradient of the sum, known to all, is that of every part.
        """
        if self.alone:
            return part
        summed: Tensor = _Sum.apply(part, self)  # type: ignore[no-untyped-call]
        return summed

    def spread(self, tensor: Tensor) -> Tensor:
        """Return a tensor that all hold alike, with which every process computes its own part.

        So its gradient is the sum of theirs.
        """
        if self.alone:
            return tensor
        spread: Tensor = _Spread.apply(tensor, self)  # type: ignore[no-untyped-call]
        return spread

    def total(self, part: Tensor) -> Tensor:
        """Return the sum of all parts, a constant."""
        return part if self.alone else processes.total(part, self.group)

    def mean(self, part: Tensor) -> Tensor:
        """Return the mean of all parts, a constant."""
        return part if self.alone else processes.mean(part, self.group)

    def largest(self, part: Tensor) -> Tensor:
        """Return the elementwise maximum of all parts, a constant."""
        return part if self.alone else processes.largest(part, self.group)

    def smallest(self, part: Tensor) -> Tensor:
        """Return the elementwise minimum of all parts, a constant."""
        return part if self.alone else processes.smallest(part, self.group)

    def joined(self, part: Tensor, dim: int = 0) -> Tensor:
        """Return the parts of all, of one shape, one after the other along `dim`, a constant."""
        return part if self.alone else processes.gathered(part, self.group, dim)

    def place(self, length: int) -> slice:
        """Return where the part of this process lies in a whole of so many, shared out evenly."""
        size = length // self.count
        return slice(self.rank * size, (self.rank + 1) * size)

    def own(self, indices: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Return which `indices: [j]` into a whole of so many lie in the part of this process,
        bool `[j]`, and their places there, int64.
        """  # noqa: D205
        place = self.place(length)
        mine = (indices >= place.start) & (indices < place.stop)
        return mine, indices[mine] - place.start


ALONE = Processes()
"""One process that holds everything."""


class Mesh(NamedTuple):
    """The processes of a run, in two directions.

    Attributes:
        data: those with the same atoms as this one: each has its own rows.
        dictionary: those with the same rows as this one: each has its own atoms.
    """

    data: Processes = ALONE
    dictionary: Processes = ALONE

    @property
    def is_first(self) -> bool:
        """Whether this is process 0, which writes files."""
        return self.data.rank == 0 and self.dictionary.rank == 0


def mesh_of(trainer: Any) -> Mesh:
    """Return the mesh of a Lightning trainer: that of its strategy if it shards the dictionary,
    else all processes have the whole dictionary and rows of their own.
    """  # noqa: D205
    mesh = getattr(trainer.strategy, "mesh", None)
    if isinstance(mesh, Mesh):
        return mesh
    return Mesh(data=Processes(trainer.global_rank, trainer.world_size))


def data_processes(trainer: Any) -> int:
    """Return how many processes have rows of their own, also before they know each other."""
    count: int = trainer.world_size // n_shards(trainer)
    return count


def n_shards(trainer: Any) -> int:
    """Return how many processes hold a dictionary together, also before they know each other."""
    count: int = getattr(trainer.strategy, "n_shards", 1)
    return count


@torch.no_grad()
def whole_codes(codes: Codes, shards: Processes) -> Codes:
    """Return codes over all atoms, of codes over those of this process, a constant.

    They are k-sparse, as wide as the fullest part of a row times p.
    """
    if shards.alone:
        return codes
    values, indices, m = codes.detach()
    if indices is None:
        width = max(1, int(shards.largest(codes.l0().amax())))
        indices = values.abs().topk(width, dim=1, sorted=False).indices
        values = values.gather(1, indices)
    else:
        room = int(shards.largest(torch.tensor(values.shape[1], device=values.device)))
        values, indices = _widened(values, indices, min(room, m), m)
    indices = indices + shards.rank * m
    return Codes(shards.joined(values, 1), shards.joined(indices, 1), m * shards.count)


def _widened(values: Tensor, indices: Tensor, width: int, m: int) -> tuple[Tensor, Tensor]:
    """Return k-sparse codes with zeros at atoms that the rows do not have otherwise."""
    free = torch.ones(len(values), m, dtype=torch.bool, device=values.device)
    free.scatter_(1, indices, False)
    more = free.to(torch.uint8).topk(width - values.shape[1], dim=1, sorted=False).indices
    return torch.cat([values, torch.zeros_like(more, dtype=values.dtype)], 1), torch.cat(
        [indices, more], 1
    )


class _Sum(torch.autograd.Function):
    """The sum over processes; backward hands the gradient on."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, holders: Processes) -> Tensor:
        return holders.total(part)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Spread(torch.autograd.Function):
    """The tensor itself; backward sums the gradients over processes."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, holders: Processes) -> Tensor:
        ctx.holders = holders
        return tensor.view_as(tensor)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.holders.total(grad), None
