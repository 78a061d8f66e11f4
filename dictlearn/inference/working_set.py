"""Exact codes by working sets: a dense look at all atoms, then a small problem on the likely ones.

Most atoms are far from use in any one row. A round looks at the correlations of all atoms with
the residuals, adds those that exceed their price most to every row's working set, and solves
that small problem in Gram form. A row leaves when its relative duality gap, which the look at
all atoms brings along, is small. Three or four looks do where 500 steps of FISTA do not.

Legend: n rows, m atoms, d width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.dictionary import Dictionary
from dictlearn.errors import InputError, choice, number, whole_number
from dictlearn.inference import working_set_torch
from dictlearn.inference.driver import (
    Solution,
    check_convex,
    check_problem,
    check_tolerance,
    in_rounds,
    working_dtype,
)
from dictlearn.inference.engine import ENGINES, pick
from dictlearn.inference.interface import Inference
from dictlearn.inference.price import search_price
from dictlearn.inference.working_set_codes import Attempt, merged, rows_of
from dictlearn.prox import Penalty, Priced, Prox, Relu, Soft

PRECISIONS = ("auto", "float32", "float64")


class WorkingSet(Inference):
    """Exact codes of every convex sparsity with a price, certified row by row.

    Args:
        tolerance: largest allowed relative duality gap, below 1e-5 in float64.
        max_rounds: bound on the rounds; a row needs 3 or 4, a hard one 10.
        engine: `auto`, `torch` or `compiled`: machine code on a CPU, see `pick`.
        precision: `auto`, `float32` or `float64`; auto takes float64 below a tolerance of 1e-5,
            and for rows whose gap float32 cannot lower to it (prices near its rounding errors).

    Raises:
        InputError: an option is out of its range.
    """

    differentiable = False

    @property
    def needs_price(self) -> bool:
        """True."""
        return True

    def __init__(
        self,
        tolerance: float = 1e-4,
        max_rounds: int = 50,
        engine: str = "auto",
        precision: str = "auto",
    ) -> None:
        super().__init__()
        self.precision = choice("inference.precision", precision, PRECISIONS)
        self.tolerance = _above_zero(check_tolerance(tolerance, precision))
        self.max_rounds = whole_number("inference.max_rounds", max_rounds)
        self.engine = choice("inference.engine", engine, ENGINES)

    def build(self, dictionary: Dictionary, prox: Prox) -> None:
        """Check the sparsity; see `Inference.build`."""
        _check_priced(check_convex(prox))
        prox.check(dictionary.n_atoms)
        pick(self.engine, torch.empty(0))

    def reset(self, dictionary: Dictionary) -> None:
        """Do nothing: there is no state."""

    def reset_atoms(self, dictionary: Dictionary, indices: Tensor) -> None:
        """Do nothing: there is no state."""

    @torch.no_grad()
    def forward(
        self,
        x: Tensor,
        atoms: Tensor,
        prox: Prox,
        initial: Codes | None = None,
        certify: bool = True,
    ) -> Solution:
        """Return certified codes, k-sparse with k of the fullest row; see `Inference.forward`."""
        return solve(
            x,
            atoms,
            prox,
            tolerance=self.tolerance,
            initial=initial,
            engine=self.engine,
            precision=self.precision,
            max_rounds=self.max_rounds,
        )


@torch.no_grad()
def solve(
    x: Tensor,
    atoms: Tensor,
    prox: Prox,
    *,
    tolerance: float = 1e-4,
    initial: Codes | None = None,
    gram: Tensor | None = None,
    engine: str = "auto",
    precision: str = "auto",
    max_rounds: int = 50,
) -> Solution:
    """Solve `min_a 1/2 |x - a Phi|^2 + penalty(a)` for every row by working sets.

    Args:
        x: `[n, d]`.
        atoms: `[m, d]`, unit rows.
        prox: a convex sparsity with a price.
        tolerance: largest allowed relative duality gap of every row, above 0.
        initial: codes to start from, dense or k-sparse; zeros if None.
        gram: `Phi Phi^T`, `[m, m]`, where it is at hand: rows then gather their products from
            it. Where it is not, computing it for one batch does not pay.
        engine: see `pick`.
        precision: see `WorkingSet`.
        max_rounds: bound on the rounds of every convex problem in one precision.

    Returns:
        k-sparse codes, their gaps (before the codes are rounded to the dtype of `x`), and in
        `steps` the rounds of the slowest row.

    Raises:
        InputError: widths differ, or the sparsity has no price or no certificate.
    """
    sparsity = _check_priced(check_problem(x, atoms, prox))
    _above_zero(tolerance)
    dtype = working_dtype(x, tolerance, precision)
    if dtype not in (torch.float32, torch.float64):
        dtype = torch.float32
    work = x.detach().to(dtype)
    table = atoms.detach().to(dtype)
    products = None if gram is None else gram.to(work)
    if pick(engine, work):
        from dictlearn.inference import working_set_compiled

        run = working_set_compiled.run
    else:
        run = working_set_torch.run

    rescue = dtype == torch.float32 and precision == "auto" and x.device.type != "mps"

    def one(penalty: Penalty, start: Codes | None) -> Solution:
        """Solve one convex problem."""
        found = run(work, table, penalty, start, products, tolerance, max_rounds)
        if rescue and bool(found.stuck.any()):
            found = _finished(run, work, table, penalty, found, tolerance, max_rounds)
        return Solution(found.codes, found.gap, found.rounds, found.gap <= tolerance)

    return in_rounds(work, sparsity, initial, one, x.dtype)


def _finished(
    run: Callable[..., Attempt],
    x: Tensor,
    atoms: Tensor,
    penalty: Penalty,
    found: Attempt,
    tolerance: float,
    max_rounds: int,
) -> Attempt:
    """Return an attempt in float32 with its stuck rows finished in float64."""
    rows, wide = found.stuck.nonzero()[:, 0], atoms.double()
    penalty, start = penalty.rows(rows).to(wide), rows_of(found.codes, rows)
    again = run(x[rows].double(), wide, penalty, start, None, tolerance, max_rounds)
    return merged(found, again, rows)


def _check_priced(prox: Priced) -> Priced:
    if isinstance(prox, Relu):
        raise InputError(
            "prox=relu puts no price on codes, so that no small set of atoms suffices: "
            "choose prox=soft, or inference=fista."
        )
    return prox


def _above_zero(tolerance: float) -> float:
    if number("inference.tolerance", tolerance, minimum=0.0) == 0:
        raise InputError(
            "inference.tolerance=0 is never met by a working set: choose a relative gap above 0, "
            "for example 1e-4."
        )
    return tolerance


@torch.no_grad()
def price_for_l0(
    x: Tensor,
    atoms: Tensor,
    l0: float,
    prox: Priced | None = None,
    *,
    tolerance: float = 3e-5,
    accuracy: float = 0.01,
    engine: str = "auto",
) -> float:
    """Return the price at which the optimal codes have `l0` codes a row on average.

    See `search_price`; every problem starts from the codes of the last.

    Args:
        x: `[n, d]`, a sample: 1000 rows give L0 to about 1 %.
        atoms: `[m, d]`, unit rows.
        l0: wanted mean number of codes, above 0 and below what the smallest price gives.
        prox: the sparsity, whose own price is only where the search starts; `Soft` if None.
        tolerance: relative duality gap of the codes that are counted; at a loose one, codes of
            the price before are counted along.
        accuracy: largest relative error of the L0, where the rows allow it.
        engine: see `pick`.

    Raises:
        InputError: `l0` is not reached by any price.
    """
    sparsity = Soft(0.1) if prox is None else prox
    codes: Codes | None = None

    def count(price: float) -> float:
        nonlocal codes
        priced = sparsity.priced(torch.tensor(price).to(x))
        codes = solve(x, atoms, priced, tolerance=tolerance, initial=codes, engine=engine).codes
        return float(codes.l0().double().mean())

    # No code is active from the largest correlation on.
    high = max(float((x @ atoms.T).abs().amax()), 1e-30)
    return search_price(count, l0, high / 8, (high / 1e4, high), accuracy)
