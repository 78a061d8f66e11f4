"""The loops of the pursuits in plain torch, a batch of rows in step.

Legend: n rows, m atoms, k slots per row, s atoms to start from, c = correlations of all atoms
with the residual, q = those of the atoms held.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dictlearn.inference.pursuit_batch import Pairs
from dictlearn.inference.pursuit_form import Form, combine, largest
from dictlearn.inference.pursuit_support import Limits, Support


def rounds_at_most(k: int) -> int:
    """Return a bound on the steps: every one lowers the error, few let an atom go."""
    return 4 * k + 4


def omp_rows(form: Form, k: int, per_step: int, start: Tensor, limits: Limits) -> Pairs:
    """Return the codes of non-negative orthogonal matching pursuit; see `pursuit.omp`.

    Args:
        form: the problem.
        k: codes per row.
        per_step: atoms added before the codes are fitted anew.
        start: atoms to begin with, int64 `[n, s]`, -1 where there are fewer.
        limits: what counts as zero.
    """
    support = Support.empty(len(start), k, form[0])
    values, indices = support.values.clone(), support.indices - 1
    rows, width = torch.arange(len(start), device=start.device), start.shape[1]
    floor = begin(form, support, start, limits)
    used = support.first(width)
    c = form.correlations(used.values, used.indices)
    for _ in range(rounds_at_most(k)):
        width = min(k, width + per_step)
        used = support.first(width)
        q = c.gather(1, used.indices)
        q, added = _insert(form, used, _chosen(c, floor, min(per_step, k)), q, limits)
        used.fit(q, form, floor, limits.independent)
        going = added & ~support.held.all(1)
        # All rows go on until every slot has been in use; then most are done.
        if width == k and not going.all():
            leave, stay = (~going).nonzero().squeeze(1), going.nonzero().squeeze(1)
            values[rows[leave]], indices[rows[leave]] = polished(
                form.rows(leave), support.rows(leave)
            )
            rows, floor = rows[stay], floor[stay]
            form, support = form.rows(stay), support.rows(stay)
            used = support
        if len(rows) == 0:
            return values, indices
        c = form.correlations(used.values, used.indices)
    values[rows], indices[rows] = polished(form, support)
    return values, indices


def begin(form: Form, support: Support, start: Tensor, limits: Limits) -> Tensor:
    """Hold the atoms to start from, in place; return the smallest useful correlation, `[n]`."""
    c = form.correlations(support.values[:, :0], support.indices[:, :0])
    floor = limits.useful * c.amax(1)
    if start.shape[1] > 0:
        used = support.first(start.shape[1])
        given = [
            Choice(c.gather(1, a.clamp_min(0)[:, None]).squeeze(1), a, a >= 0) for a in start.T
        ]
        q, _ = _insert(form, used, given, torch.zeros_like(used.values), limits)
        used.fit(q, form, floor, limits.independent)
    return floor


def add_largest(form: Form, support: Support, floor: Tensor, limits: Limits) -> bool:
    """Add to every row with a free slot the atom that correlates most, and fit the codes.

    Returns:
        Whether any row took one, so that it may be worth another step.
    """
    c = form.correlations(support.values, support.indices)
    q = c.gather(1, support.indices)
    q, added = _insert(form, support, _chosen(c, floor, 1), q, limits)
    if not added.any():
        return False
    support.fit(q, form, floor, limits.independent)
    return True


def gradient_rows(form: Form, atoms: Tensor, k: int, limits: Limits) -> Pairs:
    """Return the codes of non-negative gradient pursuit; see `pursuit.gradient_pursuit`."""
    values = form[0].new_zeros(len(form[0]), k)
    indices = torch.zeros(values.shape, dtype=torch.int64, device=values.device)
    held = torch.zeros_like(indices, dtype=torch.bool)
    c = form.correlations(values[:, :0], indices[:, :0])
    floor = limits.useful * c.amax(1)
    for done in range(1, rounds_at_most(k) + 1):
        q = torch.where(held, c.gather(1, indices), 0.0)
        # Held atoms are chosen only once: they are out of the race for the next one.
        barred = torch.full_like(q, torch.inf).masked_fill_(held, -torch.inf)
        c.scatter_reduce_(1, indices, barred, "amin")
        value, atom = largest(c)
        slot = held.to(torch.int8).argmin(1)[:, None]
        going = (value > floor) & ~held.gather(1, slot).squeeze(1)
        if done > k and not going.any():
            break
        there = torch.zeros_like(held).scatter_(1, slot, going[:, None])
        held |= there
        indices = torch.where(there, atom[:, None], indices)
        q = torch.where(there, value[:, None], q) * going[:, None]
        length = q.square().sum(1) / combine(q, indices, atoms).square().sum(1)
        reach = torch.where(q < 0, -values / q, torch.inf)
        length = torch.where(going, length.minimum(reach.amin(1)), 0.0)[:, None]
        gone = reach <= length
        values = (values + length * q).masked_fill_(gone, 0.0)
        held &= ~gone
        used = min(k, done)
        c = form.correlations(values[:, :used], indices[:, :used])
    return values, torch.where(held, indices, -1)


def matching_rows(form: Form, k: int, limits: Limits) -> Pairs:
    """Return the k steps of non-negative matching pursuit; see `pursuit.matching_sequence`."""
    values = form[0].new_zeros(len(form[0]), k)
    indices = torch.zeros(values.shape, dtype=torch.int64, device=values.device)
    c = form.correlations(values[:, :0], indices[:, :0])
    floor = limits.useful * c.amax(1)
    for t in range(k):
        value, atom = largest(c)
        useful = value > floor
        values[:, t], indices[:, t] = torch.where(useful, value, 0.0), atom.where(useful, 0)
        if t + 1 < k:
            c = form.after_step(c, values[:, : t + 1], indices[:, : t + 1])
    return values, indices


class Choice(NamedTuple):
    """An atom for every row.

    Attributes:
        value: its correlation with the residual, `[n]`.
        atom: int64 `[n]`, -1 where there is none.
        wanted: bool `[n]`.
    """

    value: Tensor
    atom: Tensor
    wanted: Tensor


def _chosen(c: Tensor, floor: Tensor, per_step: int) -> Iterator[Choice]:
    """Yield the atoms with the largest correlations; `c` is overwritten."""
    for number in range(per_step):
        value, atom = largest(c)
        if number + 1 < per_step:
            c.scatter_(1, atom[:, None], -torch.inf)
        yield Choice(value, atom, value > floor)


def _insert(
    form: Form, support: Support, chosen: Iterable[Choice], q: Tensor, limits: Limits
) -> tuple[Tensor, Tensor]:
    """Add atoms; return `q: [n, k]` with theirs in it, and which rows took any, bool `[n]`."""
    any_added = torch.zeros(len(q), dtype=torch.bool, device=q.device)
    for value, atom, wanted in chosen:
        atom = atom.clamp_min(0)
        slot = support.first_free()
        added = support.insert(slot, atom, form, wanted, limits.independent)
        place = slot[:, None]
        q.scatter_(1, place, torch.where(added, value, q.gather(1, place).squeeze(1))[:, None])
        any_added |= added
    return q, any_added


def polished(form: Form, support: Support) -> Pairs:
    """Return the codes after a last Newton step, free of accumulated rounding."""
    q = form.correlations_at(support.values, support.indices)
    values = support.aim(q).clamp_min(0) * support.held
    return values, torch.where(support.held, support.indices, -1)
