"""What a learned encoder loses against a solver."""

import torch

from dictlearn.codes import Codes
from dictlearn.inference import amortisation, omp, solve
from dictlearn.prox import BatchTopK, Relu, Soft, TopK
from tests.inference.problems import problem


def test_of_optimal_codes_it_is_nothing_and_of_none_it_is_the_whole_way() -> None:
    x, atoms = problem()
    prox = Soft(0.1)
    best = solve(x, atoms, prox, tolerance=1e-8).codes
    pair = amortisation(x, best, atoms, prox)
    assert pair is not None
    assert abs(float(pair.encoder.sum() / pair.solver.sum()) - 1) < 1e-4
    none = amortisation(x, Codes.from_dense(torch.zeros(len(x), len(atoms)).double()), atoms, prox)
    assert none is not None
    torch.testing.assert_close(none.encoder, 0.5 * x.square().sum(1))
    assert (none.solver <= none.encoder + 1e-12).all()


def test_with_a_number_of_codes_it_is_measured_against_the_pursuit() -> None:
    x, atoms = problem()
    greedy = omp(x, atoms, 4)
    pair = amortisation(x, greedy, atoms, TopK(4))
    assert pair is not None
    torch.testing.assert_close(pair.encoder, pair.solver)
    worse = Codes(greedy.values * 0.5, greedy.indices, greedy.n_atoms)
    pair = amortisation(x, worse, atoms, TopK(4))
    assert pair is not None
    assert pair.encoder.sum() > 1.2 * pair.solver.sum()


def test_without_a_price_or_a_number_there_is_nothing_to_compare_with() -> None:
    x, atoms = problem()
    codes = omp(x, atoms, 4)
    assert amortisation(x, codes, atoms, Relu()) is None
    assert amortisation(x, codes, atoms, BatchTopK(4)) is None
