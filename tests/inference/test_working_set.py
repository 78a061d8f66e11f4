"""Working sets find the optimum that scikit-learn finds, certify it, and survive odd input."""

import math

import pytest
import torch
from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.errors import InputError
from dictlearn.inference import (
    Fista,
    GreedyFista,
    Ista,
    Solution,
    WorkingSet,
    duality_gap,
    infer,
    objective,
    price_for_l0,
    solve,
    working_set_compiled,
    working_set_torch,
)
from dictlearn.prox import (
    ElasticNet,
    Priced,
    Prox,
    Relu,
    Reweighted,
    SignedSoft,
    Soft,
    TopK,
    Weighted,
)
from tests.inference.oracle import oracle, value_and_gap
from tests.inference.problems import Problem, dictionary_of, problem

ENGINES = ["torch", "compiled"]
N, M = 12, 48


def weights(m: int = M) -> list[float]:
    return torch.linspace(0.5, 2.0, m).tolist()


def layered() -> Soft:
    return Soft([0.05, 0.2, 0.1]).for_layers(torch.arange(N) % 3)


PENALTIES: dict[str, Priced] = {
    "soft": Soft(0.1),
    "per layer": layered(),
    "signed": SignedSoft(0.1),
    "elastic": ElasticNet(0.1, 0.3),
    "weighted": Weighted(0.1, weights()),
    "tensor price": Soft(0.1).priced(torch.tensor(0.07)),
}


def given(**options: object) -> Problem:
    made = problem(n=N, **options)  # type: ignore[arg-type]
    # Half of the rows also need negative codes, where they are allowed.
    sign = torch.where(torch.arange(N) % 2 == 0, 1.0, -1.0)[:, None].to(made.x)
    return Problem(made.x * sign, made.atoms)


def price_of(prox: Priced, x: Tensor) -> tuple[Tensor, float, bool]:
    penalty = prox.penalty(x)
    return penalty.price.expand(len(x), M), penalty.ridge, penalty.signed


def distinct(codes: Codes) -> bool:
    assert codes.indices is not None
    rows = codes.indices.tolist()
    return all(len(set(row)) == len(row) and min(row) >= 0 for row in rows)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", PENALTIES)
def test_the_codes_are_those_of_scikit_learn(name: str, engine: str) -> None:
    x, atoms = given()
    prox = PENALTIES[name]
    solution = solve(x, atoms, prox, tolerance=1e-12, engine=engine)
    price, ridge, signed = price_of(prox, x)
    expected = oracle(x, atoms, price, ridge, signed)
    torch.testing.assert_close(solution.codes.dense(), expected, atol=1e-5, rtol=1e-5)
    assert (expected.abs() > 1e-3).any(1).sum() >= N // 2
    if signed:
        assert (expected < -1e-3).any()
    assert solution.converged.all()
    assert distinct(solution.codes)


@pytest.mark.parametrize("solver", [Ista(), Fista(), GreedyFista()])
@pytest.mark.parametrize("name", PENALTIES)
def test_first_order_solvers_find_the_same_codes(name: str, solver: Ista) -> None:
    x, atoms = given()
    prox = PENALTIES[name]
    steps = infer(x, atoms, prox, solver, tolerance=1e-9, max_steps=20_000)
    exact = solve(x, atoms, prox, tolerance=1e-12).codes
    assert steps.converged.all()
    torch.testing.assert_close(steps.codes.values, exact.dense(), atol=1e-3, rtol=0)
    excess = objective(x, steps.codes, atoms, prox) / objective(x, exact, atoms, prox) - 1
    assert excess.max() <= 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", PENALTIES)
def test_the_gap_is_that_of_the_codes_returned(name: str, engine: str, dtype: torch.dtype) -> None:
    x, atoms = given(dtype=dtype)
    prox = PENALTIES[name]
    price, ridge, signed = price_of(prox, x)
    for tolerance, max_rounds in ((1e-4, 50), (1e-4, 1)):
        solution = solve(x, atoms, prox, tolerance=tolerance, engine=engine, max_rounds=max_rounds)
        codes = solution.codes.dense()
        value, gap = value_and_gap(x, codes, atoms, price, ridge, signed)
        torch.testing.assert_close(solution.gap.double(), gap, atol=3e-6, rtol=0.01)
        torch.testing.assert_close(
            duality_gap(x, solution.codes, atoms, prox).double(), gap, atol=3e-6, rtol=0.01
        )
        dense = Codes.from_dense(codes)
        torch.testing.assert_close(
            duality_gap(x, dense, atoms, prox).double(), gap, atol=3e-6, rtol=0.01
        )
        torch.testing.assert_close(
            objective(x, solution.codes, atoms, prox).double(), value, atol=1e-6, rtol=1e-5
        )
        assert torch.equal(solution.converged, solution.gap <= tolerance)
        assert bool(solution.converged.all()) == (max_rounds == 50)


@pytest.mark.parametrize("prox", [Soft(0.05), SignedSoft(0.05), ElasticNet(0.05, 0.2)])
@pytest.mark.parametrize("steps", [1, 10, 100])
def test_the_gap_bounds_the_suboptimality_of_every_penalty(prox: Priced, steps: int) -> None:
    x, atoms = given()
    codes = infer(x, atoms, prox, tolerance=0, max_steps=steps).codes
    best = objective(x, solve(x, atoms, prox, tolerance=1e-12).codes, atoms, prox)
    value = objective(x, codes, atoms, prox)
    assert (duality_gap(x, codes, atoms, prox) >= (value - best) / value - 1e-12).all()


@pytest.mark.parametrize("engine", ENGINES)
def test_reweighted_codes_are_those_of_the_problems_solved_in_a_row(engine: str) -> None:
    x, atoms = given()
    prox = Reweighted(0.1, epsilon=0.2, rounds=3)
    price = torch.full((N, M), 0.1, dtype=torch.float64)
    expected = oracle(x, atoms, price, 0.0, False)
    for _ in range(2):
        price = 0.1 * 0.2 / (0.2 + expected)
        expected = oracle(x, atoms, price, 0.0, False)
    solution = solve(x, atoms, prox, tolerance=1e-12, engine=engine)
    torch.testing.assert_close(solution.codes.dense(), expected, atol=1e-5, rtol=1e-5)
    _, gap = value_and_gap(x, solution.codes.dense(), atoms, price, 0.0, False)
    assert gap.max() < 1e-5
    fista = infer(x, atoms, prox, tolerance=1e-10, max_steps=20_000)
    torch.testing.assert_close(fista.codes.values, expected, atol=1e-3, rtol=0)
    values = []
    for rounds in (1, 2, 6):
        codes = solve(x, atoms, Reweighted(0.1, 0.2, rounds), tolerance=1e-10).codes
        values.append(objective(x, codes, atoms, prox).sum())
    assert values[0] > values[1] > values[2]  # it lowers the log penalty
    assert solution.codes.l0().sum() < solve(x, atoms, Soft(0.1)).codes.l0().sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("prox", [Soft(0.03), SignedSoft(0.03)])
def test_both_engines_agree_to_the_gap(prox: Prox, dtype: torch.dtype) -> None:
    x, atoms = problem(n=150, d=32, m=160, dtype=dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    one, two = (solve(x, atoms, prox, tolerance=tolerance, engine=e) for e in ENGINES)
    values = [objective(x, s.codes, atoms, prox) for s in (one, two)]
    assert one.converged.all()
    assert two.converged.all()
    assert ((values[0] - values[1]).abs() <= 1.1 * tolerance * values[0] + 1e-6).all()
    torch.testing.assert_close(one.codes.dense(), two.codes.dense(), atol=2e-3, rtol=0)


@pytest.mark.parametrize("engine", ENGINES)
def test_working_sets_grow_as_far_as_the_codes_need(engine: str) -> None:
    x, atoms = problem(n=9, d=128, m=256, seed=3)
    x = x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    solution = solve(x, atoms, SignedSoft(0.01), tolerance=1e-4, engine=engine)
    assert solution.converged.all()
    assert solution.codes.l0().min() > 100
    assert duality_gap(x, solution.codes, atoms, SignedSoft(0.01)).max() < 1.2e-4


@pytest.mark.parametrize("engine", ENGINES)
def test_a_warm_start_may_be_anything_and_saves_rounds(engine: str) -> None:
    x, atoms = problem(n=40, d=32, m=160)
    prox = Soft(0.05)

    def run(initial: Codes | None) -> Solution:
        return solve(x, atoms, prox, tolerance=1e-10, initial=initial, engine=engine)

    cold = run(None)
    again = run(cold.codes)
    assert again.steps == 0
    torch.testing.assert_close(again.codes.dense(), cold.codes.dense())
    rough = infer(x, atoms, prox, tolerance=0, max_steps=60).codes
    kept = TopK(8)(x @ atoms.T, 0.0)
    starts = {
        "dense": rough,
        "sparse": kept,
        "negative": Codes.from_dense(-rough.values),
        "huge": Codes.from_dense(torch.ones_like(rough.values)),
    }
    for name, start in starts.items():
        before = start.values.clone()
        warm = run(start)
        assert warm.converged.all(), name
        torch.testing.assert_close(warm.codes.dense(), cold.codes.dense(), atol=1e-4, rtol=0)
        assert torch.equal(start.values, before)
        assert (warm.codes.values >= 0).all()
    assert run(rough).steps < cold.steps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("engine", ENGINES)
def test_odd_rows_and_atoms_are_coded_too(engine: str, dtype: torch.dtype) -> None:
    x, atoms = problem(dtype=dtype)
    atoms = torch.cat([atoms, atoms[:5], -atoms[:3]])  # duplicates, and opposites
    x = torch.cat([x[:3], x[:1], torch.zeros_like(x[:2]), atoms[:1], 1e-20 * x[:1], 100 * x[:2]])
    far = torch.stack([x.T, x.T], dim=2)[:, :, 0].T  # not contiguous
    assert not far.is_contiguous()
    for rows in (far, far[:1], far[:0]):
        solution = solve(rows, atoms, Soft(0.1), tolerance=1e-4, engine=engine)
        assert solution.converged.all()
        assert solution.codes.values.shape[0] == len(solution.gap) == len(rows)
        assert solution.codes.values.isfinite().all()
        if len(rows):
            assert distinct(solution.codes)
    codes = solve(far, atoms, Soft(0.1), tolerance=1e-4, engine=engine).codes.dense()
    assert not codes[4:6].any()
    torch.testing.assert_close(codes[0], codes[3])
    alone = solve(far[2:3], atoms, Soft(0.1), tolerance=1e-4, engine=engine).codes.dense()
    torch.testing.assert_close(alone[0] @ atoms, codes[2] @ atoms, atol=1e-2, rtol=0)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_price_above_every_correlation_gives_no_codes(engine: str) -> None:
    x, atoms = problem()
    for price in (1.01 * float((x @ atoms.T).max()), 1e6):
        solution = solve(x, atoms, Soft(price), engine=engine)
        assert not solution.codes.values.any()
        assert solution.steps == 0
        assert solution.gap.max() <= 1e-12


@pytest.mark.parametrize("engine", ENGINES)
def test_rows_do_not_depend_on_their_neighbours(engine: str) -> None:
    x, atoms = problem(n=600, dtype=torch.float32)
    prices = torch.linspace(0.02, 0.3, 600)
    together = solve(x, atoms, Soft(0.1).priced(prices), engine=engine)
    for row in (0, 300, 599):
        alone = solve(x[row : row + 1], atoms, Soft(float(prices[row])), engine=engine)
        torch.testing.assert_close(
            alone.codes.dense()[0], together.codes.dense()[row], atol=3e-3, rtol=0
        )
    assert together.converged.all()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_gram_matrix_at_hand_changes_nothing(engine: str) -> None:
    x, atoms = problem(n=40)
    for prox in (Soft(0.05), ElasticNet(0.05, 0.2)):
        plain, given_gram = (
            solve(x, atoms, prox, tolerance=1e-10, gram=gram, engine=engine)
            for gram in (None, atoms @ atoms.T)
        )
        torch.testing.assert_close(plain.codes.dense(), given_gram.codes.dense(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("engine", ENGINES)
def test_float32_rows_meet_tolerances_that_need_float64(engine: str) -> None:
    x, atoms = problem(dtype=torch.float32)
    solution = solve(x, atoms, Soft(0.1), tolerance=1e-9, engine=engine)
    assert solution.converged.all()
    assert solution.codes.values.dtype == solution.gap.dtype == torch.float32
    wide = solve(x.double(), atoms.double(), Soft(0.1), tolerance=1e-9, engine=engine)
    torch.testing.assert_close(
        solution.codes.dense(), wide.codes.dense().float(), atol=1e-6, rtol=1e-5
    )
    half = solve(x.bfloat16(), atoms.bfloat16(), Soft(0.1), engine=engine)
    assert half.codes.values.dtype == torch.bfloat16
    assert half.converged.all()


def test_the_module_is_the_function_and_carries_no_gradient() -> None:
    x, atoms = problem(dtype=torch.float32)
    dictionary = dictionary_of(atoms)
    for engine in ("auto", *ENGINES):
        inference = WorkingSet(tolerance=1e-4, engine=engine)
        inference.build(dictionary, Soft(0.1))
        solution = inference(x.clone().requires_grad_(), dictionary.atoms, Soft(0.1))
        expected = solve(x, atoms, Soft(0.1), engine=engine)
        assert torch.equal(solution.codes.values, expected.codes.values)
        assert not solution.codes.values.requires_grad
        assert list(inference.parameters()) == []
        assert inference.needs_price
        assert not inference.differentiable


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5])
@pytest.mark.parametrize("engine", ENGINES)
def test_coarse_looks_change_only_the_way(
    engine: str, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, atoms = problem(n=100, d=64, m=256, dtype=torch.float32)
    for prox in (Soft(0.03), SignedSoft(0.03), ElasticNet(0.03, 0.2)):
        found = []
        for fast in (True, False):
            for module in (working_set_torch, working_set_compiled):
                monkeypatch.setattr(module, "has_fast_bfloat16", lambda _, fast=fast: fast)
            solution = solve(x, atoms, prox, tolerance=tolerance, engine=engine)
            assert solution.converged.all()
            gap = duality_gap(
                x.double(), Codes.from_dense(solution.codes.dense().double()), atoms.double(), prox
            )
            torch.testing.assert_close(solution.gap.double(), gap, atol=5e-6, rtol=0.01)
            found.append(solution.codes.dense())
        torch.testing.assert_close(found[0], found[1], atol=tolerance**0.5, rtol=0)


@pytest.mark.slow  # compiles once more
def test_threads_change_nothing() -> None:
    x, atoms = problem(n=300, dtype=torch.float32)
    one = solve(x, atoms, Soft(0.05), engine="compiled")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        two = solve(x, atoms, Soft(0.05), engine="compiled")
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(one.codes.dense(), two.codes.dense(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("prox", [Soft(0.1), SignedSoft(0.3), ElasticNet(0.1, 0.1)])
def test_the_price_of_a_wanted_l0_is_found(prox: Priced) -> None:
    x, atoms = problem(n=400, d=32, m=128, dtype=torch.float32)
    for wanted in (3.0, 10.0):
        price = price_for_l0(x, atoms, wanted, prox)
        codes = solve(x, atoms, prox.priced(torch.tensor(price)), tolerance=1e-5).codes
        assert float(codes.l0().float().mean()) == pytest.approx(wanted, rel=0.02)
    assert price_for_l0(x, atoms, 3.0) > price_for_l0(x, atoms, 10.0)
    assert math.isfinite(price_for_l0(x[:1], atoms, 2.5))  # L0 of one row is a whole number
    with pytest.raises(InputError, match="l0=100"):
        price_for_l0(x, atoms, 100.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", PENALTIES)
def test_a_gpu_finds_the_same_codes(name: str) -> None:
    prox = PENALTIES[name]
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-10)):
        x, atoms = given(dtype=dtype)
        here = solve(x, atoms, prox, tolerance=tolerance, engine="torch")
        there = solve(x.cuda(), atoms.cuda(), prox, tolerance=tolerance)
        assert there.converged.all()
        torch.testing.assert_close(there.codes.dense().cpu(), here.codes.dense(), atol=1e-2, rtol=0)


def test_mistakes_are_told_by_their_key() -> None:
    x, atoms = problem()
    for wrong in (Relu(), TopK(3)):
        with pytest.raises(InputError, match="choose prox=soft"):
            WorkingSet().build(dictionary_of(atoms), wrong)
        with pytest.raises(InputError, match="choose prox=soft"):
            solve(x, atoms, wrong)
    with pytest.raises(InputError, match="width 16 but the atoms have width 48"):
        solve(x, atoms.T, Soft(0.1))
    with pytest.raises(InputError, match=r"inference\.tolerance=0"):
        WorkingSet(tolerance=0.0)
    with pytest.raises(InputError, match=r"inference\.precision=auto"):
        WorkingSet(tolerance=1e-7, precision="float32")
    with pytest.raises(InputError, match=r"inference\.engine=numba .*compiled"):
        WorkingSet(engine="numba")
    with pytest.raises(InputError, match=r"inference\.precision=double"):
        WorkingSet(precision="double")
    with pytest.raises(InputError, match=r"inference\.max_rounds"):
        WorkingSet(max_rounds=0)
