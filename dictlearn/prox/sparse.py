"""Sparsities that count codes instead of pricing them.

Legend: n rows, m atoms, k kept codes per row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dictlearn import processes
from dictlearn.codes import Codes
from dictlearn.errors import InputError, whole_number
from dictlearn.prox.table import Constant, Moment
from dictlearn.seeding import generator


class Counted(Constant):
    """A sparsity at no price: what it limits is how many codes there are."""

    @property
    def lambda_(self) -> float:
        """0: codes cost nothing, there are only few."""
        return 0.0

    @property
    def convex(self) -> bool:
        """False: the set of sparse codes is not convex."""
        return False

    def value(self, codes: Codes) -> Tensor:
        """Return zeros, `[n]`."""
        return codes.values.new_zeros(len(codes.values))


@dataclass(frozen=True)
class TopK(Counted):
    """At most `k` positive codes a row: the `k` largest positive entries are kept.

    A row with fewer than `k` positive entries keeps zeros in the places left; which of several
    equal entries is kept is not specified.

    Args:
        k: codes kept per row.
        sampled: lowest and highest k of training, where every step draws its own, uniformly in
            log k; None: every step keeps `k`. An encoder trained so is good at every k in this
            range, so that `k` is chosen at use.

    Raises:
        InputError: `k` is not a whole number of at least 1, or `sampled` no range of such.
    """

    k: int
    sampled: Sequence[int] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", whole_number("prox.k", self.k))
        if self.sampled is not None:
            object.__setattr__(self, "sampled", _range(self.sampled))

    def __call__(self, v: Tensor, threshold: Tensor | float) -> Codes:
        """Return the `k` largest entries of `relu(v - threshold)`, k-sparse."""
        lowered = v - threshold
        values, indices = lowered.topk(self.k, dim=1, sorted=False)
        return Codes(torch.relu(values), indices, v.shape[-1])

    def at(self, moment: Moment) -> TopK:
        """Return the sparsity of a training step: itself, or with the k that the step draws."""
        if self.sampled is None:
            return self
        low, high = self.sampled
        share = torch.rand((), generator=generator(moment.seed, "prox.sampled", moment.step))
        drawn = round(low * math.exp(float(share) * math.log(high / low)))
        return replace(self, k=min(max(drawn, low), high))

    def check(self, n_atoms: int) -> None:
        """Raise InputError when more codes are kept than there are atoms."""
        _check_count("prox.k", self.k, n_atoms)
        if self.sampled is not None:
            _check_count("the upper end of prox.sampled", max(self.sampled), n_atoms)


@dataclass(frozen=True)
class BatchTopK(Counted):
    """On average `k` positive codes a row: the `n k` largest of a batch (Bussmann et al. 2024).

    A batch shares its codes out among its rows. So that a row's codes do not depend on the rows
    beside it, an encoder keeps at use what exceeds the mean threshold of training. The batch is
    that of all processes together.

    Args:
        k: codes kept per row, on average.

    Raises:
        InputError: `k` is not a whole number of at least 1.
    """

    k: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", whole_number("prox.k", self.k))

    def __call__(self, v: Tensor, threshold: Tensor | float) -> Codes:
        """Return the `n k` largest entries of `relu(v - threshold)`, dense."""
        positive = torch.relu(v - threshold)
        if processes.world_size() > 1:
            chosen = processes.among_largest(positive, len(v) * self.k)
            return Codes.from_dense(torch.where(chosen, positive, 0.0))
        flat = positive.flatten()
        kept = torch.zeros_like(flat)
        chosen = flat.topk(min(len(v) * self.k, len(flat)), sorted=False).indices
        return Codes.from_dense(kept.scatter(0, chosen, flat[chosen]).view_as(positive))

    def check(self, n_atoms: int) -> None:
        """Raise InputError when more codes are kept than there are atoms."""
        _check_count("prox.k", self.k, n_atoms)


def _range(sampled: Sequence[int]) -> tuple[int, int]:
    if isinstance(sampled, str) or not isinstance(sampled, Sequence) or len(sampled) != 2:
        raise InputError(f"prox.sampled={sampled} must be two numbers, as in prox.sampled=[8,128].")
    low, high = (whole_number("prox.sampled", end) for end in sampled)
    if low > high:
        raise InputError(f"prox.sampled=[{low},{high}] must give the smaller number first.")
    return low, high


def _check_count(name: str, k: int, n_atoms: int) -> None:
    if k > n_atoms:
        raise InputError(
            f"{name}={k} is more than dictionary.n_atoms={n_atoms}: "
            f"keep at most {n_atoms} codes, or learn more atoms."
        )
