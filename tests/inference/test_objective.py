"""The objective, its gap, and the loss of training."""

import functools

import pytest
import torch

from dictlearn.codes import Codes
from dictlearn.inference import Fista, duality_gap, infer, objective, training_loss
from dictlearn.prox import Prox, Relu, Soft, TopK
from tests.inference.problems import Problem, problem


def few_atoms() -> Problem:
    """Fewer atoms than dimensions: also without a price the optimum is above 0."""
    return problem(d=40, m=30)


@functools.cache
def optimum(prox: Prox) -> torch.Tensor:
    given = few_atoms()
    solution = infer(*given, prox, Fista(), tolerance=0, max_steps=5_000)
    return objective(given.x, solution.codes, given.atoms, prox)


def test_the_objective_is_error_plus_price_for_dense_and_sparse_codes() -> None:
    given = problem()
    codes = TopK(3)(given.x @ given.atoms.T, 0.0)
    expected = 0.5 * (given.x - codes.dense() @ given.atoms).square().sum(1)
    torch.testing.assert_close(objective(given.x, codes, given.atoms, TopK(3)), expected)
    dense = Codes.from_dense(codes.dense())
    expected = expected + 0.3 * codes.dense().sum(1)
    torch.testing.assert_close(objective(given.x, dense, given.atoms, Soft(0.3)), expected)
    torch.testing.assert_close(objective(given.x, codes, given.atoms, Soft(0.3)), expected)


@pytest.mark.parametrize("prox", [Soft(0.05), Soft(0.5), Relu()])
@pytest.mark.parametrize("steps", [1, 10, 50, 200])
def test_the_gap_bounds_the_true_suboptimality(prox: Prox, steps: int) -> None:
    given = few_atoms()
    codes = infer(*given, prox, Fista(), tolerance=0, max_steps=steps).codes
    value = objective(given.x, codes, given.atoms, prox)
    scale = value if prox.lambda_ > 0 else 0.5 * given.x.square().sum(1)
    excess = (value - optimum(prox)) / scale  # type: ignore[arg-type]
    gap = duality_gap(given.x, codes, given.atoms, prox)
    assert (gap >= excess - 1e-12).all()


def test_the_gap_is_the_textbook_difference_of_primal_and_dual() -> None:
    given, price = problem(), 0.2
    codes = infer(*given, Soft(price), tolerance=0, max_steps=7).codes
    value = objective(given.x, codes, given.atoms, Soft(price))
    residual = given.x - codes.values @ given.atoms
    limit = price / (residual @ given.atoms.T).amax(1).clamp_min(1e-30)
    s = ((given.x * residual).sum(1) / residual.square().sum(1)).clamp_min(0).minimum(limit)
    dual = 0.5 * (given.x.square() - (given.x - s[:, None] * residual).square()).sum(1)
    gap = duality_gap(given.x, codes, given.atoms, Soft(price))
    torch.testing.assert_close(gap, (value - dual) / value, rtol=1e-9, atol=1e-12)


def test_the_gap_vanishes_at_the_optimum_and_nowhere_else() -> None:
    given, prox = problem(), Soft(0.1)
    codes = infer(*given, prox, tolerance=1e-12, max_steps=20_000).codes
    assert duality_gap(given.x, codes, given.atoms, prox).max() < 1e-12
    moved = Codes.from_dense(codes.values * 1.05)
    active = codes.l0() > 0
    assert active.sum() > 10
    assert duality_gap(given.x, moved, given.atoms, prox)[active].min() > 1e-5


def test_the_gap_of_topk_codes_is_that_of_the_lasso_at_the_largest_inactive_correlation() -> None:
    given, price = problem(), 0.1
    codes = infer(*given, Soft(price), tolerance=1e-13, max_steps=50_000).codes
    k = int(codes.l0().max())
    values, indices = codes.values.topk(k, dim=1)
    sparse = Codes(values, indices, codes.n_atoms)
    gap = duality_gap(given.x, sparse, given.atoms, TopK(k))
    residual = given.x - codes.values @ given.atoms
    correlation = (residual @ given.atoms.T).masked_fill(codes.values > 0, -torch.inf)
    for row in range(len(values)):
        prox = Soft(max(float(correlation[row].amax()), 1e-12))
        one = Codes(values[row : row + 1], indices[row : row + 1], codes.n_atoms)
        own = duality_gap(given.x[row : row + 1], one, given.atoms, prox)
        torch.testing.assert_close(gap[row : row + 1], own)


@pytest.mark.parametrize("prox", [Soft(0.1), Relu(), TopK(3)])
def test_zero_rows_and_perfect_rows_have_a_number_for_a_gap(prox: Prox) -> None:
    given = problem(n=4)
    x = torch.zeros_like(given.x)
    x[1] = given.atoms[0]
    indices = torch.arange(3).expand(4, 3)
    codes = Codes(torch.zeros(4, 3, dtype=x.dtype), indices, 48)
    assert duality_gap(x, codes, given.atoms, prox)[[0, 2, 3]].tolist() == [0, 0, 0]
    codes.values[1, 0] = 1
    assert duality_gap(x, codes, given.atoms, prox).isfinite().all()


def test_the_gap_is_exact_enough_in_float32() -> None:
    given = problem(n=200, d=64, m=256)
    prox = Soft(0.1)
    codes = infer(*given, prox, tolerance=1e-9, max_steps=20_000).codes
    narrow = Codes.from_dense(codes.values.float())
    assert duality_gap(given.x.float(), narrow, given.atoms.float(), prox).max() < 5e-6


def test_the_loss_moves_atoms_along_the_weighted_residuals_times_codes() -> None:
    given, prox = problem(), Soft(0.1)
    atoms = given.atoms.clone().requires_grad_()
    codes = infer(given.x, given.atoms, prox, max_steps=20).codes
    weight = torch.rand(len(given.x), dtype=torch.float64)
    residual = given.x - codes.values @ given.atoms
    for each in (weight, None):
        loss = training_loss(given.x, codes.values @ atoms, codes, prox, each)
        w = torch.ones_like(weight) if each is None else each
        value = objective(given.x, codes, given.atoms, prox)
        torch.testing.assert_close(loss.detach(), (w * value).mean())
        (gradient,) = torch.autograd.grad(loss, atoms)
        expected = -(w[:, None] * codes.values).T @ residual / len(given.x)
        torch.testing.assert_close(gradient, expected)
