"""Pursuit with exchange: codes that adding some atoms and dropping as many cannot improve.

Legend: n rows, m atoms, d width, k codes kept per row, H = inverse Gram matrix of the atoms held.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from dictlearn.codes import Codes
from dictlearn.errors import choice, number, whole_number
from dictlearn.inference.price import search_price
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
SHARE, ROOT, LOOKS, GAP = 1.5, 0.8, 4, 0.05
"""The l1 start: lambda is `SHARE / (k + 4)` of a row's largest correlation, or `ROOT` times the
root of the price, which leaves some more codes than wanted; a rough answer is as good a start as
an exact one."""
MOST = 4
"""Codes a row may have at a price, for every code of the mean: some one row in a hundred wants
more."""
BETTER = 1 + 1e-6
"""A smaller share of the energy explained is rounding."""


class Options(NamedTuple):
    """How much is exchanged.

    Attributes:
        block: atoms added, and then dropped, in a round.
        rounds: at most; a row that gains nothing ends earlier.
        price: squared error that a code must save; 0: every row has k codes.
    """

    block: int
    rounds: int
    price: float


@torch.no_grad()
def exchange_pursuit(
    x: Tensor,
    atoms: Tensor,
    k: int,
    *,
    rounds: int = 8,
    block: int | None = None,
    price: float = 0.0,
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

    With a price p the codes lower `|x - a Phi|^2 + p |a|_0`, by the same steps: dropped is every
    atom that saves less than p. At one price for all rows, those that need many codes have many,
    and the error at equal mean L0 is the lowest (see `price_for_exchange`).

    Args:
        x: `[n, d]`.
        atoms: `[m, d]`, unit rows.
        k: codes kept per row; with a price, at most.
        rounds: of exchange, at most.
        block: atoms exchanged at a time; None for a quarter of the codes wanted, k or with a price
            `k / MOST`, and 4 at least.
        price: squared error that every code must save; 0: as many codes as k allows.
        start: `l1`, or `zero`: grown atom by atom, which costs a third and gives up a part.
        initial: codes whose k largest positive entries are the start instead.
        engine: `auto`, `torch` or `compiled`; see `omp`.

    Returns:
        k-sparse codes, with zeros where fewer atoms are of use.

    Raises:
        InputError: shapes, k or an option do not fit.
    """
    price = number("inference.price", price, 0.0)
    usual = max(4, k // (4 * MOST if price else 4))
    block = usual if block is None else whole_number("inference.block", block)
    options = Options(block, whole_number("inference.rounds", rounds), price)
    choice("inference.start", start, STARTS)
    x, atoms, limits = checked(x, atoms, k)
    if initial is None and start == "l1":
        initial = rough_l1(x, atoms, k, price, engine)
    given = first_support(initial, k, x)
    if not price:
        pairs = _exchanged(x, atoms, k, given, options, limits, engine)
        return as_codes(pairs, len(atoms))
    # Rows that will have about as many codes are worked on in step.
    order = (given >= 0).sum(1).argsort()
    pairs = _exchanged(x[order], atoms, k, given[order], options, limits, engine)
    values, indices = (part[order.argsort()] for part in pairs)
    if x.device.type == "cpu" and len(x):  # elsewhere the host would wait for the fullest row
        width = max(1, int((indices >= 0).sum(1).amax()))
        values, indices = values[:, :width], indices[:, :width]
    return as_codes((values, indices), len(atoms))


def _exchanged(
    x: Tensor,
    atoms: Tensor,
    k: int,
    start: Tensor,
    options: Options,
    limits: Limits,
    engine: str,
) -> Pairs:
    """Return the codes of `exchange_pursuit` from the supports `start`, by either engine."""

    def compiled(rows: slice, b: Array, gram: Array, values: Array, indices: Array) -> None:
        """Fill the values and indices of some rows; see `pursue`."""
        from dictlearn.inference.compiled.exchange import exchange

        tolerances = (limits.useful, limits.independent)
        exchange(b, gram, start[rows].numpy(), *options, tolerances, values, indices)

    def in_torch(form: Form, rows: slice) -> Pairs:
        """Return the values and indices of some rows; see `pursue`."""
        return exchange_rows(form, k, start[rows], options, limits)

    return pursue(x, atoms, k, engine, compiled, in_torch)


@torch.no_grad()
def price_for_exchange(
    x: Tensor, atoms: Tensor, l0: int, *, accuracy: float = 0.01, engine: str = "auto"
) -> float:
    """Return the price at which the codes of `exchange_pursuit` number `l0` a row on average.

    Args:
        x: `[n, d]`, a sample: 500 rows give L0 to about 2 %.
        atoms: `[m, d]`, unit rows.
        l0: wanted mean number of codes; no row may have more than `MOST` times as many.
        accuracy: largest relative error of the L0, where the rows allow it.
        engine: `auto`, `torch` or `compiled`; see `omp`.

    Raises:
        InputError: `l0` is not reached by any price.
    """
    most = min(MOST * whole_number("prox.k", l0), len(atoms))

    def count(price: float) -> float:
        codes = exchange_pursuit(x, atoms, most, price=price, engine=engine)
        return float(codes.l0().double().mean())

    energy = max(float(x.square().sum(1).amax()), 1e-30)  # no code can save more
    return search_price(count, l0, energy / (8 * l0) ** 2, (1e-10 * energy, 2 * energy), accuracy)


def rough_l1(x: Tensor, atoms: Tensor, k: int, price: float, engine: str = "auto") -> Codes:
    """Return l1 codes of which some more are positive than are wanted, to start from.

    Args:
        x: `[n, d]`.
        atoms: `[m, d]`, unit rows.
        k: codes wanted per row, without a price.
        price: squared error that a code must save, or 0.
        engine: see `solve`.
    """
    lambda_ = torch.tensor(ROOT * price**0.5, dtype=x.dtype, device=x.device)
    if not price:
        parts = [(x[part] @ atoms.T).amax(1) for part in split(len(x), FITTING // len(atoms))]
        largest = torch.cat(parts).clamp_min(torch.finfo(x.dtype).tiny ** 0.5)
        lambda_ = SHARE / (k + 4) * largest[:, None]
    prox = Soft(1.0).priced(lambda_)
    return solve(x, atoms, prox, tolerance=GAP, max_rounds=LOOKS, engine=engine).codes


def exchange_rows(form: Form, k: int, start: Tensor, options: Options, limits: Limits) -> Pairs:
    """Return the codes of `exchange_pursuit` in plain torch, a batch of rows in step.

    Args:
        form: the problem.
        k: codes per row, or with a price at most.
        start: atoms to begin with, int64 `[n, s]`, -1 where there are fewer; `s <= k`.
        options: how much is exchanged.
        limits: what counts as zero.
    """
    # Of prices a row's start says about how many codes it will have; slots are dear here.
    likely = int(1.5 * (start >= 0).sum(1).amax()) if start.numel() else k
    most = min(k, likely) if options.price else k
    support = Support.empty(len(start), most + options.block, form[0])
    floor = begin(form, support, start[:, :most], limits)
    rows = torch.arange(len(start), device=start.device)
    if options.price:
        _shrink(form, support, most, options.price)
    values, indices = _compact(*polished(form, support), k)
    best = _worth(form, values, indices, options.price)
    for _ in range(options.rounds):
        goal = torch.full_like(rows, most + options.block)
        if options.price:
            goal = goal.minimum(support.held.sum(1) + options.block)
        # A row may lose atoms on the way up, and then needs more steps to be full.
        for _ in range(2 * (k + options.block)):
            floor_now = torch.where(support.held.sum(1) < goal, floor, torch.inf)
            if not add_largest(form, support, floor_now, limits):
                break
        _shrink(form, support, most, options.price)
        found = _compact(*polished(form, support), k)
        worth = _worth(form, *found, options.price)
        better = worth > best * BETTER
        kept, stay = rows[better], better.nonzero().squeeze(1)
        values[kept], indices[kept] = found[0][better], found[1][better]
        if len(kept) == 0:
            break
        rows, best, floor = kept, worth[better], floor[better]
        form, support = form.rows(stay), support.rows(stay)
    return values, indices


def _shrink(form: Form, support: Support, k: int, price: float) -> None:
    """Drop the atom whose loss raises the error least, and fit, until all are worth their place.

    At most `k` are left, and each of them saves its price.
    """
    while True:
        energy = support.values.square() / support.inverse.diagonal(dim1=1, dim2=2)
        loss, slot = torch.where(support.held, energy, torch.inf).min(1)
        over = (support.held.sum(1) > k) | (loss < price)
        if not over.any():
            return
        goal = support.values.clone()
        support.drop(slot, goal, over)
        support.settle(goal)


def _compact(values: Tensor, indices: Tensor, k: int) -> Pairs:
    """Return the at most k codes of every row in k slots."""
    order = (indices < 0).to(torch.int8).argsort(dim=1, stable=True)[:, :k]
    more = (0, k - order.shape[1])
    return pad(values.gather(1, order), more), pad(indices.gather(1, order), more, value=-1)


def _worth(form: Form, values: Tensor, indices: Tensor, price: float) -> Tensor:
    """Return the energy that least-squares codes explain, less their price, `[n]`.

    The squared error is `|x|^2` less `<a, b>`.
    """
    atoms = indices.clamp_min(0)
    explained = (values * form.correlations_at(torch.zeros_like(values), atoms)).sum(1)
    return explained - price * (indices >= 0).sum(1)
