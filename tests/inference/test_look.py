"""A look at the atoms near their price alone finds all that a look at every atom would."""

from typing import Any

import numpy as np
import pytest
import torch

from dictlearn.codes import Codes
from dictlearn.inference import duality_gap, solve
from dictlearn.inference.compiled.look import HELD, look_near
from dictlearn.inference.compiled.problem import Problem
from dictlearn.prox import ElasticNet, Priced, SignedSoft, Soft, Weighted
from tests.inference.problems import problem

M, PRICE = 1024, 0.05
WEIGHTS = torch.linspace(0.5, 2.0, M).tolist()


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("slack", [0.0, 2.0**-7])
def test_atoms_that_can_have_reached_their_price_are_found(slack: float, signed: bool) -> None:
    rows, table = problem(n=2, d=64, m=M, dtype=torch.float32)
    x, atoms, weights = rows.numpy(), table.numpy(), np.array([WEIGHTS], np.float32)
    none = np.zeros((1, 1), np.float32)
    price = np.full(2, PRICE, np.float32)
    given = Problem(x, atoms, none, price, weights, 1 / weights, np.float32(0), signed)
    for share in (0.0, 0.01, 0.1, 10.0):
        seen, r = 0.3 * x[1], 0.3 * x[1] + share * 0.01 * x[0]

        def ratios(residual: Any) -> Any:
            c = residual @ atoms.T
            return (np.abs(c) if signed else c) / (PRICE * weights[0])

        known = ratios(seen) * np.float32(1 - slack)
        known[7] = HELD
        near, excess = np.empty(M, np.int64), np.empty(M, np.float32)
        count = look_near(known, 1, given, r, seen, np.float32(slack), near, excess)
        if share == 10.0 and count < 0:
            continue
        over = {j for j in np.flatnonzero(ratios(r) > 1) if j != 7}
        assert over <= set(near[:count])
        assert 7 not in near[:count]
        np.testing.assert_allclose(excess[:count], ratios(r)[near[:count]], rtol=1e-4, atol=1e-5)
        few = look_near(known, 1, given, r, seen, np.float32(slack), near[:count], excess[:count])
        assert few == -1  # no place for all of them


@pytest.mark.parametrize(
    "prox",
    [Soft(0.02), SignedSoft(0.02), ElasticNet(0.02, 0.2), Weighted(0.02, WEIGHTS)],
    ids=lambda prox: type(prox).__name__,
)
@pytest.mark.parametrize("tolerance", [1e-2, 1e-3, 1e-4])
def test_the_gap_is_true_whatever_the_last_look_was(prox: Priced, tolerance: float) -> None:
    x, atoms = problem(n=150, d=64, m=M, dtype=torch.float32, seed=1)
    solution = solve(x, atoms, prox, tolerance=tolerance, engine="compiled")
    assert solution.converged.all()
    codes = Codes.from_dense(solution.codes.dense().double())
    gap = duality_gap(x.double(), codes, atoms.double(), prox)
    # A look near the price may stand for others by 1, never by less than they are.
    assert (gap - solution.gap).max() < 1e-5
    assert (solution.gap - gap).max() < tolerance
