"""Solvers reach the optimum, stop when told, and are safe."""

import math

import pytest
import torch

from dictlearn.codes import Codes
from dictlearn.errors import InputError
from dictlearn.inference import (
    Fista,
    FistaSeed,
    GreedyFista,
    Ista,
    Iterative,
    Solver,
    duality_gap,
    exact_largest_eigenvalue,
    infer,
    largest_eigenvalue,
    objective,
)
from dictlearn.inference.driver import working_dtype
from dictlearn.prox import Prox, Relu, Soft, TopK
from tests.inference.problems import dictionary_of, problem

SOLVERS: list[Solver] = [Ista(), Fista(), Fista(restart=False), GreedyFista()]


def fista_of_the_paper(
    image: torch.Tensor, basis: torch.Tensor, lambda_: float, n_steps: int
) -> torch.Tensor:
    """The seed's inference, columns as data: image [d, n], basis [d, m], codes [m, n]."""
    eta = 1 / torch.linalg.eigvalsh(basis @ basis.T)[-1]
    a = y = torch.zeros(basis.shape[1], image.shape[1], dtype=basis.dtype)
    t = 1.0
    for _ in range(n_steps):
        following = (1 + math.sqrt(1 + 4 * t * t)) / 2
        y = y + eta * basis.T @ (image - basis @ y)
        a_next = (y - eta * lambda_).clamp(min=0)
        y = a_next + (t - 1) / following * (a_next - a)
        a, t = a_next, following
    return a


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_fista_seed_is_the_released_code_step_for_step(
    dtype: torch.dtype, tolerance: float
) -> None:
    given = problem(dtype=dtype)
    seed = FistaSeed()
    seed.build(dictionary_of(given.atoms), Soft(0.3))
    solution = seed(*given, Soft(0.3))
    assert solution.steps == 500
    expected = fista_of_the_paper(given.x.T, given.atoms.T, 0.3, 500).T
    torch.testing.assert_close(solution.codes.values, expected, rtol=0, atol=tolerance)
    early = FistaSeed(max_steps=20)(*given, Soft(0.3)).codes.values
    expected = fista_of_the_paper(given.x.T, given.atoms.T, 0.3, 20).T
    torch.testing.assert_close(early, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_solver_reaches_the_tolerance_on_every_row(
    solver: Solver, dtype: torch.dtype
) -> None:
    given, prox = problem(dtype=dtype), Soft(0.1)
    solution = infer(*given, prox, solver, tolerance=1e-4, max_steps=20_000)
    assert solution.converged.all()
    assert solution.steps < 20_000
    assert solution.gap.max() <= 1e-4
    # The certificate belongs to the codes that are returned, and they are the optimum's.
    torch.testing.assert_close(
        solution.gap, duality_gap(given.x, solution.codes, given.atoms, prox), rtol=0.02, atol=1e-6
    )
    exact = infer(*problem(), prox, tolerance=1e-12, max_steps=50_000).codes
    best = objective(problem().x, exact, problem().atoms, prox)
    excess = objective(given.x, solution.codes, given.atoms, prox) / best - 1
    assert excess.max() <= 1.1e-4


@pytest.mark.parametrize("solver", SOLVERS)
def test_non_negative_least_squares_solves_a_cone_it_can_reach(solver: Solver) -> None:
    given = problem(d=8, m=64)
    x = torch.rand(10, 64, dtype=torch.float64) @ given.atoms
    solution = infer(x, given.atoms, Relu(), solver, tolerance=1e-4, max_steps=5_000)
    assert solution.converged.all()
    assert objective(x, solution.codes, given.atoms, Relu()).max() < 1e-4 * x.square().sum(1).max()


def test_rows_do_not_depend_on_their_neighbours() -> None:
    given, prox = problem(), Soft(0.1)
    together = infer(*given, prox, tolerance=1e-3)
    step = 1 / largest_eigenvalue(given.atoms)[0]
    for row in (0, 7):
        alone = infer(given.x[row : row + 1], given.atoms, prox, tolerance=1e-3, step_size=step)
        torch.testing.assert_close(alone.codes.values[0], together.codes.values[row])
        torch.testing.assert_close(alone.gap[0], together.gap[row], rtol=1e-6, atol=1e-12)


def restarted_fista(
    x: torch.Tensor, atoms: torch.Tensor, lambda_: float, n_steps: int
) -> torch.Tensor:
    """One row of O'Donoghue & Candes 2015, gradient scheme, written out."""
    eta = 1 / exact_largest_eigenvalue(atoms)
    a = y = torch.zeros(len(atoms), dtype=x.dtype)
    t = 1.0
    for _ in range(n_steps):
        a_next = (y + eta * atoms @ (x - y @ atoms) - eta * lambda_).clamp(min=0)
        if (y - a_next) @ (a_next - a) > 0:
            y, t = a_next, 1.0
        else:
            following = (1 + math.sqrt(1 + 4 * t * t)) / 2
            y, t = a_next + (t - 1) / following * (a_next - a), following
        a = a_next
    return a


@pytest.mark.parametrize("n_steps", [60, 100])
def test_every_row_restarts_on_its_own(n_steps: int) -> None:
    given = problem(n=6)
    step = 1 / exact_largest_eigenvalue(given.atoms)
    options = {"tolerance": 0.0, "max_steps": n_steps, "step_size": step}
    codes, plain = (
        infer(*given, Soft(0.05), Fista(restart), **options).codes.values  # type: ignore[arg-type]
        for restart in (True, False)
    )
    rows = [restarted_fista(x, given.atoms, 0.05, n_steps) for x in given.x]
    torch.testing.assert_close(codes, torch.stack(rows))
    assert not torch.allclose(codes, plain)


def test_restart_and_a_warm_start_save_steps_and_fista_beats_ista() -> None:
    given, prox = problem(n=100, d=32, m=128), Soft(0.05)
    solvers: dict[str, Solver] = {"ista": Ista(), "plain": SOLVERS[2], "restart": Fista()}
    steps = {
        name: infer(*given, prox, solver, tolerance=1e-6, max_steps=50_000).steps
        for name, solver in solvers.items()
    }
    assert steps["restart"] < 0.7 * steps["plain"] < 0.7 * steps["ista"]
    rough = infer(*given, prox, tolerance=1e-3, max_steps=5_000)
    warm = infer(*given, prox, tolerance=1e-6, max_steps=50_000, initial=rough.codes)
    assert warm.steps < steps["restart"]
    assert warm.converged.all()


def test_a_warm_start_may_be_k_sparse_and_is_not_changed() -> None:
    given, prox = problem(), Soft(0.1)
    start = TopK(4)(given.x @ given.atoms.T, 0.0)
    before = start.values.clone()
    warm = infer(*given, prox, initial=start, tolerance=1e-9, max_steps=20_000)
    cold = infer(*given, prox, tolerance=1e-9, max_steps=20_000)
    torch.testing.assert_close(warm.codes.values, cold.codes.values, atol=1e-3, rtol=0)
    assert torch.equal(start.values, before)


def test_the_steps_are_bounded_and_the_failure_is_told() -> None:
    solution = infer(*problem(), Soft(0.1), tolerance=1e-8, max_steps=13)
    assert solution.steps == 13
    assert not solution.converged.all()
    assert solution.gap.isfinite().all()


def test_no_rows_give_no_codes() -> None:
    given = problem()
    solution = infer(given.x[:0], given.atoms, Soft(0.1))
    assert solution.codes.values.shape == (0, 48)
    assert solution.gap.shape == (0,)


@pytest.mark.parametrize("kind", ["random", "coherent", "equal", "orthogonal", "two clusters"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_step_size_is_safe(kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    d, m = 48, 160
    atoms = torch.randn(m, d, dtype=dtype)
    if kind == "coherent":
        atoms += 3
    elif kind == "equal":
        atoms[:] = atoms[0]
    elif kind == "orthogonal":
        atoms = torch.eye(d, dtype=dtype)
    elif kind == "two clusters":  # the two leading eigenvalues are equal
        atoms = 0.1 * atoms
        atoms[::2, 0] += 1
        atoms[1::2, 1] -= 1
    atoms /= atoms.norm(dim=1, keepdim=True)
    bound, vector = largest_eigenvalue(atoms)
    exact = exact_largest_eigenvalue(atoms)
    assert 1.0 <= bound / exact < 1.1
    x, prox = torch.randn(20, d, dtype=dtype), Soft(0.01)
    values = []
    codes: Codes | None = None
    for _ in range(60):
        codes = infer(
            x, atoms, prox, Ista(), tolerance=0, max_steps=1, initial=codes, step_size=1 / bound
        ).codes
        values.append(objective(x, codes, atoms, prox))
    descent = torch.stack(values).diff(dim=0)
    assert (descent <= 1e-6 * values[0]).all()  # never uphill, on any row
    moved = atoms + 0.02 * torch.randn_like(atoms)
    moved /= moved.norm(dim=1, keepdim=True)
    warm, _ = largest_eigenvalue(moved, vector)
    assert 1.0 <= warm / exact_largest_eigenvalue(moved) < 1.1


def test_evaluation_leaves_the_eigenvector_alone_and_training_keeps_it() -> None:
    given = problem()
    inference = Iterative(Fista())
    inference.build(dictionary_of(given.atoms), Soft(0.1))
    inference.eval()(*given, Soft(0.1))
    assert not inference.state_dict()["direction"].any()
    inference.train()(*given, Soft(0.1))
    v = inference.state_dict()["direction"]
    leading = torch.linalg.eigh(given.atoms.T @ given.atoms).eigenvectors[:, -1]
    torch.testing.assert_close((v @ leading).abs(), torch.tensor(1.0, dtype=v.dtype))
    inference.reset(dictionary_of(given.atoms))
    assert not inference.direction.any()


@pytest.mark.parametrize("prox", [Soft(0.1), Relu()])
@pytest.mark.parametrize("solver", [Ista(), Fista()])
def test_the_module_is_the_driver_and_carries_no_gradient(solver: Solver, prox: Prox) -> None:
    given = problem()
    dictionary = dictionary_of(given.atoms)
    inference = Iterative(solver, tolerance=1e-3, max_steps=2_000)
    inference.build(dictionary, prox)
    solution = inference(given.x, dictionary.atoms, prox)
    expected = infer(*given, prox, solver, tolerance=1e-3, max_steps=2_000)
    assert not solution.codes.values.requires_grad
    torch.testing.assert_close(solution.codes.values, expected.codes.values)
    assert list(inference.parameters()) == []
    assert inference.differentiable is False


def test_mistakes_are_told_with_what_to_change() -> None:
    given = problem(dtype=torch.float32)
    with pytest.raises(InputError, match="width 16 but the atoms have width 48"):
        infer(given.x, given.atoms.T, Soft(0.1))
    with pytest.raises(InputError, match=r"inference\.tolerance=-1"):
        infer(*given, Soft(0.1), tolerance=-1.0)
    with pytest.raises(InputError, match=r"inference\.tolerance"):
        Iterative(Fista(), tolerance=-1e-7)
    with pytest.raises(InputError, match=r"inference\.solver\.step_factor=2\.5"):
        GreedyFista(2.5)
    with pytest.raises(InputError, match=r"inference\.tolerance=1e-07 is below 1e-05"):
        working_dtype(given.x, 1e-7, "float32")
    with pytest.raises(InputError, match=r"inference\.max_steps"):
        Iterative(Fista(), max_steps=0)
    with pytest.raises(InputError, match=r"inference\.check_every"):
        infer(*given, Soft(0.1), check_every=0)
    for inference in (Iterative(Fista()), Iterative(Ista()), FistaSeed()):
        with pytest.raises(InputError, match=r"prox=topk .* prox=soft"):
            inference.build(dictionary_of(given.atoms), TopK(3))
    with pytest.raises(InputError, match="prox=topk"):
        infer(*given, TopK(3))


def greedy_fista_of_the_paper(
    x: torch.Tensor, atoms: torch.Tensor, lambda_: float, n_steps: int
) -> torch.Tensor:
    """One row of Liang, Luo & Schoenlieb 2022, greedy FISTA, written out."""
    bound = exact_largest_eigenvalue(atoms)
    gamma = 1.3 / bound
    old = a = torch.zeros(len(atoms), dtype=x.dtype)
    y = a
    first = None
    for _ in range(n_steps):
        old, a = a, (y + gamma * (atoms @ (x - y @ atoms)) - gamma * lambda_).clamp(min=0)
        length = (a - old).norm()
        first = length if first is None else first
        uphill = (y - a) @ (a - old) >= 0
        y = a if uphill else a + (a - old)
        if length > first:
            gamma = max(0.96 * gamma, 1 / bound)
    return a


@pytest.mark.parametrize("n_steps", [1, 2, 30, 90])
def test_greedy_fista_is_the_published_algorithm_row_by_row(n_steps: int) -> None:
    given = problem(n=6)
    step = 1 / exact_largest_eigenvalue(given.atoms)
    codes = infer(
        *given, Soft(0.05), GreedyFista(), tolerance=0, max_steps=n_steps, step_size=step
    ).codes.values
    rows = [greedy_fista_of_the_paper(x, given.atoms, 0.05, n_steps) for x in given.x]
    torch.testing.assert_close(codes, torch.stack(rows))


def test_greedy_fista_needs_fewer_steps_than_fista() -> None:
    given, prox = problem(n=100, d=32, m=128), Soft(0.05)
    steps = [
        infer(*given, prox, solver, tolerance=1e-6, max_steps=5_000).steps
        for solver in (GreedyFista(), Fista())
    ]
    assert steps[0] < 0.9 * steps[1]


def test_float32_rows_are_solved_in_float64_below_what_float32_certifies() -> None:
    given, prox = problem(dtype=torch.float32), Soft(0.1)
    solution = infer(*given, prox, tolerance=1e-9, max_steps=20_000)
    assert solution.converged.all()
    assert solution.steps < 20_000
    assert solution.codes.values.dtype == solution.gap.dtype == torch.float32
    wide = infer(given.x.double(), given.atoms.double(), prox, tolerance=1e-9, max_steps=20_000)
    torch.testing.assert_close(
        solution.codes.values, wide.codes.values.float(), atol=1e-5, rtol=1e-4
    )
