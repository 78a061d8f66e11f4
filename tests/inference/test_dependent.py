"""Exact codes where active atoms are sums of others: as many codes as the width, tiny prices."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.inference import duality_gap, objective, solve
from dictlearn.inference.compiled.coordinate_descent import solve_local
from dictlearn.inference.compiled.dependent import part
from dictlearn.prox import SignedSoft, Soft
from tests.inference.problems import problem

WIDTH, ATOMS = 32, 256


def rows_and_atoms(n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Gaussian rows and atoms: the price falls, and codes come to fill the width."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, WIDTH, generator=generator, dtype=torch.float64)
    atoms = torch.randn(ATOMS, WIDTH, generator=generator, dtype=torch.float64)
    return (x / WIDTH**0.5).to(dtype), torch.nn.functional.normalize(atoms, dim=1).to(dtype)


@pytest.mark.parametrize("engine", ["torch", "compiled"])
@pytest.mark.parametrize("price", [1e-3, 1e-5])
def test_codes_that_fill_the_width_are_certified(engine: str, price: float) -> None:
    x, atoms = rows_and_atoms(6, torch.float32)
    solution = solve(x, atoms, Soft(price), engine=engine)
    assert solution.converged.all()
    assert solution.codes.l0().float().mean() > WIDTH - 1
    best = solve(x.double(), atoms.double(), Soft(price), tolerance=1e-8, engine="compiled")
    assert best.converged.all()
    wide = Codes.from_dense(best.codes.dense())
    assert duality_gap(x.double(), wide, atoms.double(), Soft(price)).max() < 1e-8
    least = objective(x.double(), best.codes, atoms.double(), Soft(price))
    codes = Codes.from_dense(solution.codes.dense().double())
    found = objective(x.double(), codes, atoms.double(), Soft(price))
    assert (found / least - 1).max() < 2e-4


def test_rows_that_float32_cannot_finish_are_finished_in_float64() -> None:
    x, atoms = rows_and_atoms(6, torch.float32)
    stuck = solve(x, atoms, Soft(1e-5), precision="float32")
    assert not stuck.converged.any()
    assert stuck.steps < 50  # left when the gap stayed, not at the last round
    x = torch.cat([x, 0 * x[:1]])
    solution = solve(x, atoms, Soft(1e-5))
    assert solution.converged.all()
    assert solution.codes.values.dtype == solution.gap.dtype == torch.float32
    assert not solution.codes.values[6].any()


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_small_problem_wider_than_its_rank_is_solved(dtype: Any, signed: bool) -> None:
    x, atoms = (part.numpy().astype(dtype) for part in rows_and_atoms(1, torch.float64))
    atoms, price = atoms[:96], 1e-3
    q, codes = atoms @ x[0], np.zeros(96, dtype)
    p, exact = np.full(96, price, dtype), dtype(2e-3 if dtype is np.float32 else 1e-10)
    trials = solve_local(atoms @ atoms.T, q, p, codes, 96, signed, exact)
    assert trials < 40  # without trades, hundreds
    q = atoms @ (x[0] - codes @ atoms)
    active = codes != 0
    assert active.sum() <= WIDTH
    np.testing.assert_allclose(q[active], price * np.sign(codes[active]), rtol=2 * exact)
    assert (np.abs(q) if signed else q).max() < price * (1 + 2 * exact)


@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_trades_end_with_independent_atoms_and_never_go_uphill(ridge: float) -> None:
    x, atoms = (part.numpy() for part in rows_and_atoms(1, torch.float64))
    atoms = np.concatenate([atoms[:60], atoms[:2], atoms[:1] + atoms[1:2]])
    m = len(atoms)
    codes = np.linspace(0.1, 1.0, m)
    codes[::2] *= -1
    p = np.linspace(0.5, 2.0, m)
    h = atoms @ atoms.T + ridge * np.eye(m)
    q = atoms @ x[0] - h @ codes

    def cost() -> float:
        fit = 0.5 * np.square(x[0] - codes @ atoms).sum() + 0.5 * ridge * np.square(codes).sum()
        return float(fit + p @ np.abs(codes))

    before, decoded, old = cost(), codes @ atoms, codes.copy()
    part(h, q, p, codes, m, 1e-10)
    np.testing.assert_allclose(q, atoms @ x[0] - h @ codes, atol=1e-9)
    if ridge > 0:  # then no atom is a sum of others
        np.testing.assert_array_equal(codes, old)
        return
    active = codes != 0
    assert active.sum() == np.linalg.matrix_rank(atoms[active]) == WIDTH
    np.testing.assert_allclose(codes @ atoms, decoded, atol=1e-9)
    assert cost() < before
    assert (codes * old >= 0).all()


def test_atoms_that_are_one_another_share_a_code() -> None:
    x, atoms = problem(dtype=torch.float32)
    twice = torch.cat([atoms, atoms])
    alone = solve(x, atoms, SignedSoft(1e-3), engine="compiled").codes
    both = solve(x, twice, SignedSoft(1e-3), engine="compiled")
    assert both.converged.all()
    torch.testing.assert_close(both.codes.dense() @ twice, alone.dense() @ atoms, atol=2e-3, rtol=0)
