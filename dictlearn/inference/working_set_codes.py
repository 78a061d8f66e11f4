"""Codes that come and go with rows: cut to their support, widened, put together again.

Legend: n rows, m atoms, k kept codes per row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dictlearn.codes import Codes

PATIENCE = 8
"""Rounds in which a gap has to halve; where it does not, it is at the rounding errors."""


class Attempt(NamedTuple):
    """What the rounds of one precision came to.

    Attributes:
        codes: k-sparse.
        gap: relative duality gap `[n]`.
        rounds: of the slowest row.
        stuck: bool `[n]`, rows that were left because more rounds would not have helped.
    """

    codes: Codes
    gap: Tensor
    rounds: int
    stuck: Tensor


def rows_of(codes: Codes, keep: Tensor | slice) -> Codes:
    """Return the codes of some rows."""
    indices = None if codes.indices is None else codes.indices[keep]
    return codes._replace(values=codes.values[keep], indices=indices)


def support_of(codes: Codes, signed: bool = True) -> tuple[Tensor, Tensor]:
    """Return values and atoms, `[n, k]`, those that are not zero first; k of the fullest row.

    Args:
        codes: dense or k-sparse.
        signed: whether negative codes count; else they are taken as zeros.
    """
    values = codes.values if signed else codes.values.clamp_min(0)
    k = max(1, int((values != 0).sum(1).max())) if len(values) else 1
    places = values.abs().topk(k, dim=1).indices
    values = values.gather(1, places)
    return values, places if codes.indices is None else codes.indices.gather(1, places)


def widened(values: Tensor, indices: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return codes with zeros at atoms of their own added, `[n, k]`."""
    n, width = values.shape
    if width == k:
        return values, indices
    # Of the first k atoms of all, k - width at least are not used.
    used = values.new_zeros(n, k).scatter_(1, indices.clamp_max(k - 1), -1.0)
    used[:, k - 1].masked_fill_(~(indices == k - 1).any(1), 0.0)
    free = used.topk(k - width, dim=1).indices
    return torch.cat([values, values.new_zeros(n, k - width)], 1), torch.cat([indices, free], 1)


def put_together(
    parts: list[tuple[Tensor, Tensor, Tensor]], like: Tensor, n_rows: int, n_atoms: int
) -> Codes:
    """Return codes of `n_rows` rows from parts `(rows, values, indices)`.

    Args:
        parts: which rows, and their codes `[., k]`.
        like: a tensor of the dtype and device wanted.
        n_rows: n.
        n_atoms: m.
    """
    k = max((values.shape[1] for _, values, _ in parts), default=1)
    all_values = like.new_zeros(n_rows, k)
    all_indices = torch.zeros(n_rows, k, dtype=torch.int64, device=like.device)
    for rows, values, indices in parts:
        all_values[rows], all_indices[rows] = widened(values, indices, k)
    return Codes(all_values, all_indices, n_atoms)


def merged(first: Attempt, again: Attempt, rows: Tensor) -> Attempt:
    """Return an attempt with some rows replaced by those of another, in the dtype of the first."""
    kept = (~first.stuck).nonzero()[:, 0]
    values, indices = support_of(rows_of(first.codes, kept))
    more, places = support_of(again.codes)
    parts = [(kept, values, indices), (rows, more.to(values), places)]
    gap = first.gap.index_copy(0, rows, again.gap.to(first.gap))
    codes = put_together(parts, values, len(gap), first.codes.n_atoms)
    return Attempt(codes, gap, first.rounds + again.rounds, first.stuck)
