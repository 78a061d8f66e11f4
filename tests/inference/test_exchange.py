"""Exchange of atoms: least-squares codes that no greedy choice is stuck in."""

from functools import cache
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.errors import InputError
from dictlearn.inference import exchange_pursuit, omp
from tests.inference.problems import Problem, problem

SMALL = problem(n=60, d=16, m=14)


def error(given: Problem, codes: Codes) -> Tensor:
    return (given.x - codes.dense() @ given.atoms).square().sum(1)


@cache
def best_of_all_supports(given: Problem, k: int) -> Tensor:
    phi = given.atoms.numpy()
    supports = list(combinations(range(len(phi)), k))
    return torch.tensor(
        [min(nnls(phi[list(held)].T, row)[1] ** 2 for held in supports) for row in given.x.numpy()]
    )


@pytest.mark.parametrize("start", ["l1", "zero"])
def test_it_comes_closer_to_the_best_of_all_supports(start: str, engine: str) -> None:
    k, best = 3, best_of_all_supports(SMALL, 3)
    given = SMALL
    found = error(given, exchange_pursuit(*given, k, start=start, engine=engine))
    greedy = error(given, omp(*given, k, engine=engine))
    assert (found >= best - 1e-7).all()
    assert (greedy > best * 1.001).sum() >= 5
    assert (found - best).sum() < (greedy - best).sum() / 2


def test_a_wrong_first_choice_is_taken_back(engine: str) -> None:
    # The third atom is closest to the sum of the others, and of no use once both are held.
    atoms = torch.eye(4, dtype=torch.float64)[:3]
    atoms[2] = torch.tensor([0.7, 0.7, 0.1, 0.1])
    atoms /= atoms.norm(dim=1, keepdim=True)
    x = atoms[:1] + atoms[1:2]
    given = Problem(x, atoms)
    assert error(given, omp(x, atoms, 2, engine=engine)) > 1e-3
    codes = exchange_pursuit(x, atoms, 2, start="zero", block=1, engine=engine)
    torch.testing.assert_close(codes.dense(), torch.tensor([[1.0, 1.0, 0.0]]).double())


@pytest.mark.parametrize("k", [1, 4, 12])
def test_codes_are_the_least_squares_on_their_support(k: int, engine: str) -> None:
    given = problem(n=30)
    codes = exchange_pursuit(*given, k, engine=engine).dense()
    phi = given.atoms.numpy()
    for row, code in zip(given.x.numpy(), codes.numpy(), strict=True):
        held = np.flatnonzero(code)
        np.testing.assert_allclose(code[held], nnls(phi[held].T, row)[0], atol=1e-9)


def test_it_is_never_worse_than_its_start_and_better_on_most_rows(engine: str) -> None:
    given = problem(n=80, d=24, m=96)
    greedy = omp(*given, 8, engine=engine)
    kept = exchange_pursuit(*given, 8, initial=greedy, engine=engine)
    before, after = error(given, greedy), error(given, kept)
    assert (after <= before * (1 + 1e-9) + 1e-12).all()
    assert (after < before * 0.999).double().mean() > 0.5
    short = exchange_pursuit(*given, 8, initial=greedy, engine=engine, rounds=1)
    assert after.sum() < error(given, short).sum()


def test_larger_blocks_find_lower_errors(engine: str) -> None:
    given = problem(n=100, d=24, m=96)
    means = [
        float(error(given, exchange_pursuit(*given, 8, block=block, engine=engine)).mean())
        for block in (1, 8)
    ]
    assert means[1] < means[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_odd_rows_have_codes(dtype: torch.dtype, engine: str) -> None:
    given = problem(n=6, dtype=dtype)
    atoms = given.atoms.abs()
    x = given.x.clone()
    x[0] = 0
    x[1] = -1  # no atom correlates with it
    x[2] = atoms[7]
    codes = exchange_pursuit(x, atoms, 5, engine=engine).dense()
    assert not codes[:2].any()
    assert codes[2].argmax() == 7
    assert codes[2].sum() == pytest.approx(1.0, abs=1e-5)
    for k in (47, 48):
        full = exchange_pursuit(given.x, given.atoms, k, engine=engine)
        assert full.values.isfinite().all()


def test_options_out_of_range_are_named() -> None:
    given = problem(n=2)
    with pytest.raises(InputError, match=r"inference\.start=l2"):
        exchange_pursuit(*given, 3, start="l2")
    with pytest.raises(InputError, match=r"inference\.rounds=0"):
        exchange_pursuit(*given, 3, rounds=0)
    with pytest.raises(InputError, match=r"inference\.block=0"):
        exchange_pursuit(*given, 3, block=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_finds_codes_as_good() -> None:
    given = problem(n=200, d=24, m=96, dtype=torch.float32)
    there = exchange_pursuit(given.x.cuda(), given.atoms.cuda(), 8)
    here = exchange_pursuit(*given, 8)
    back = Codes(there.values.cpu(), there.indices.cpu(), there.n_atoms)  # type: ignore[union-attr]
    assert error(given, back).mean() <= error(given, here).mean() * 1.02
