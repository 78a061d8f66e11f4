"""Pursuit with exchange: codes with k atoms that adding some and dropping as many cannot improve.

Legend: n rows, m atoms, d width, k codes kept per row, H = inverse Gram matrix of the atoms held.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.errors import choice, whole_number
from dictlearn.inference.pursuit_batch import (
    FITTING,
    Array,
    Pairs,
    as_codes,
    checked,
    first_support,
    pursue,
    split,
)
from dictlearn.inference.pursuit_form import Form
from dictlearn.inference.pursuit_rows import add_largest, begin, polished
from dictlearn.inference.pursuit_support import Limits, Support
from dictlearn.inference.working_set import solve
from dictlearn.prox import Soft

STARTS = ("l1", "zero")
PRICE, LOOKS, GAP = 1.5, 4, 0.05
"""The l1 start: lambda is `PRICE / (k + 4)` of a row's largest correlation, which leaves some more
than k codes; a rough answer is as good a start as an exact one."""
BETTER = 1 + 1e-6
"""A smaller share of the energy explained is rounding."""


class Options(NamedTuple):
    """How much is exchanged.

    Attributes:
        block: atoms added, and then dropped, in a round.
        rounds: at most; a row that gains nothing ends earlier.
    """

    block: int
    rounds: int


@torch.no_grad()
def exchange_pursuit(
    x: Tensor,
    atoms: Tensor,
    k: int,
    *,
    rounds: int = 8,
    block: int | None = None,
    start: str = "l1",
    initial: Codes | None = None,
    engine: str = "auto",
) -> Codes:
    """Non-negative codes with k atoms whose support was exchanged until that does not help.

    A greedy choice is never taken back in orthogonal matching pursuit. Here a round adds `block`
    atoms as that would, then drops as many, each time the one without which the squared error
    rises least, `a_u^2 / H_uu`; codes are always the non-negative least squares on the atoms held
    (forward-backward greedy, Zhang 2011, "Adaptive forward-backward greedy algorithm for learning
    sparse representations"; exchange as in Jain, Tewari & Dhillon 2011, "Orthogonal matching
    pursuit with replacement"). The best codes met are returned: never worse than the start.

    The start matters as much: the k largest l1 codes of a rough working-set solution.

    Args:
        x: `[n, d]`.
        atoms: `[m, d]`, unit rows.
        k: codes kept per row.
        rounds: of exchange, at most.
        block: atoms exchanged at a time; None for a quarter of k, and 4 at least.
        start: `l1`, or `zero`: grown atom by atom, which costs a third and gives up a part.
        initial: codes whose k largest positive entries are the start instead.
        engine: `auto`, `torch` or `compiled`; see `omp`.

    Returns:
        k-sparse codes, with zeros where fewer atoms are of use.

    Raises:
        InputError: shapes, k or an option do not fit.
    """
    block = max(4, k // 4) if block is None else whole_number("inference.block", block)
    options = Options(block, whole_number("inference.rounds", rounds))
    choice("inference.start", start, STARTS)
    x, atoms, limits = checked(x, atoms, k)
    if initial is None and start == "l1":
        initial = rough_l1(x, atoms, k, engine)
    given = first_support(initial, k, x)

    def compiled(rows: slice, b: Array, gram: Array, values: Array, indices: Array) -> None:
        from dictlearn.inference.compiled.exchange import exchange

        exchange(
            b,
            gram,
            given[rows].numpy(),
            *options,
            (limits.useful, limits.independent),
            values,
            indices,
        )

    pairs = pursue(
        x,
        atoms,
        k,
        engine,
        compiled,
        lambda form, rows: exchange_rows(form, k, given[rows], options, limits),
    )
    return as_codes(pairs, len(atoms))


def rough_l1(x: Tensor, atoms: Tensor, k: int, engine: str = "auto") -> Codes:
    """Return l1 codes of which some more than k are positive, to start from.

    Args:
        x: `[n, d]`.
        atoms: `[m, d]`, unit rows.
        k: codes wanted per row.
        engine: see `solve`.
    """
    parts = [(x[part] @ atoms.T).amax(1) for part in split(len(x), FITTING // len(atoms))]
    price = PRICE / (k + 4) * torch.cat(parts).clamp_min(torch.finfo(x.dtype).tiny ** 0.5)
    prox = Soft(1.0).priced(price[:, None])
    return solve(x, atoms, prox, tolerance=GAP, max_rounds=LOOKS, engine=engine).codes


def exchange_rows(form: Form, k: int, start: Tensor, options: Options, limits: Limits) -> Pairs:
    """Return the codes of `exchange_pursuit` in plain torch, a batch of rows in step.

    Args:
        form: the problem.
        k: codes per row.
        start: atoms to begin with, int64 `[n, s]`, -1 where there are fewer; `s <= k`.
        options: how much is exchanged.
        limits: what counts as zero.
    """
    support = Support.empty(len(start), k + options.block, form[0])
    floor = begin(form, support, start, limits)
    rows = torch.arange(len(start), device=start.device)
    values, indices = _compact(*polished(form, support), k)
    best = _explained(form, values, indices)
    for _ in range(options.rounds):
        # A row may lose atoms on the way up, and then needs more steps to be full.
        for _ in range(2 * (k + options.block)):
            if not add_largest(form, support, floor, limits):
                break
        _shrink(form, support, k)
        found = _compact(*polished(form, support), k)
        explained = _explained(form, *found)
        better = explained > best * BETTER
        kept, stay = rows[better], better.nonzero().squeeze(1)
        values[kept], indices[kept] = found[0][better], found[1][better]
        if len(kept) == 0:
            break
        rows, best, floor = kept, explained[better], floor[better]
        form, support = form.rows(stay), support.rows(stay)
    return values, indices


def _shrink(form: Form, support: Support, k: int) -> None:
    """Drop the atom whose loss raises the error least, and fit, until `k` are held."""
    while True:
        over = support.held.sum(1) > k
        if not over.any():
            return
        energy = support.values.square() / support.inverse.diagonal(dim1=1, dim2=2)
        slot = torch.where(support.held, energy, torch.inf).argmin(1)
        goal = support.values.clone()
        support.drop(slot, goal, over)
        support.settle(goal)


def _compact(values: Tensor, indices: Tensor, k: int) -> Pairs:
    """Return the at most k codes of every row in k slots."""
    order = (indices < 0).to(torch.int8).argsort(dim=1, stable=True)[:, :k]
    return values.gather(1, order), indices.gather(1, order)


def _explained(form: Form, values: Tensor, indices: Tensor) -> Tensor:
    """Return `|x|^2` less the squared error of least-squares codes, `[n]`: that is `<a, b>`."""
    atoms = indices.clamp_min(0)
    return (values * form.correlations_at(torch.zeros_like(values), atoms)).sum(1)
