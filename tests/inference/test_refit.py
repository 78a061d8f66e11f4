"""Refitted codes: SciPy's least squares on the same support, whatever the support is."""

import pytest
import torch
from scipy.optimize import nnls
from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.dictionary import Dictionary
from dictlearn.errors import InputError
from dictlearn.inference import (
    Iterative,
    OrthogonalMatchingPursuit,
    Refitted,
    Unrolled,
    infer,
    omp,
    refit,
)
from dictlearn.inference.solvers import Fista
from dictlearn.prox import Soft, TopK
from tests.inference.problems import dictionary_of, problem

DTYPES = [torch.float32, torch.float64]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


@pytest.fixture(params=["torch", "compiled"])
def engine(request: pytest.FixtureRequest) -> str:
    if request.param == "compiled":
        pytest.importorskip("numba")
    return str(request.param)


def reference(x: Tensor, codes: Codes, atoms: Tensor) -> Tensor:
    result = torch.zeros(len(x), len(atoms), dtype=torch.float64)
    for i, support in enumerate(codes.dense() != 0):
        if support.any():
            phi = atoms[support].double().T.numpy()
            result[i, support] = torch.from_numpy(nnls(phi, x[i].double().numpy())[0])
    return result


def error(x: Tensor, codes: Tensor, atoms: Tensor) -> Tensor:
    return (x.double() - codes.double() @ atoms.double()).square().sum(1)


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert (actual - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lambda_", [0.05, 0.3])
def test_lasso_codes_become_least_squares(dtype: torch.dtype, lambda_: float, engine: str) -> None:
    given = problem(n=50, d=32, m=48, dtype=dtype)
    codes = infer(*given, Soft(lambda_), tolerance=1e-4).codes
    codes = Codes.from_dense(torch.where(codes.values > 1e-3, codes.values, 0.0))
    expected = reference(given.x, codes, given.atoms)
    fitted = refit(given.x, codes, given.atoms, engine=engine)
    assert fitted.indices is None
    assert fitted.values.dtype == dtype
    close(fitted.values, expected, dtype)
    before = error(given.x, codes.values, given.atoms)
    assert (error(given.x, fitted.values, given.atoms) <= before + 1e-6).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bad_support_loses_atoms_and_wins_some_back(dtype: torch.dtype, engine: str) -> None:
    given = problem(n=300, d=16, m=64, dtype=dtype)
    codes = TopK(12)(given.x @ given.atoms.T, 0.0)  # much alike: many get the code 0
    expected = reference(given.x, codes, given.atoms)
    assert (expected > 0).sum(1).float().mean() < 9
    fitted = refit(given.x, codes, given.atoms, engine=engine)
    assert fitted.indices is codes.indices
    assert (fitted.values >= 0).all()
    best = error(given.x, expected, given.atoms)
    assert (error(given.x, fitted.dense(), given.atoms) <= best * (1 + 1e-4) + 1e-7).all()
    if dtype == torch.float64:
        torch.testing.assert_close(fitted.dense(), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
def test_signed_codes_become_plain_least_squares(dtype: torch.dtype, engine: str) -> None:
    given = problem(n=30, d=32, m=48, dtype=dtype)
    g = torch.Generator().manual_seed(3)
    support = torch.rand(30, 48, generator=g) < 0.2
    codes = Codes.from_dense(torch.where(support, torch.randn(30, 48, generator=g), 0).to(dtype))
    fitted = refit(given.x, codes, given.atoms, engine=engine).values
    for i in range(30):
        phi = given.atoms[support[i]].double()
        solution = torch.linalg.lstsq(phi.T, given.x[i].double()[:, None]).solution[:, 0]
        close(fitted[i, support[i]], solution, dtype)
    assert (fitted[~support] == 0).all()
    assert (fitted < 0).any()
    positive = Codes.from_dense(codes.values.abs())
    assert (refit(given.x, positive, given.atoms, engine=engine).values >= 0).all()
    free = refit(given.x, positive, given.atoms, engine=engine, signed=True).values
    torch.testing.assert_close(free, fitted)


def test_a_row_with_both_drops_and_returns_is_optimal(engine: str) -> None:
    """The conditions of optimality: held atoms do not correlate with the residual, none should."""
    given = problem(n=400, d=10, m=40)
    codes = Codes.from_dense(torch.full((400, 40), 0.1, dtype=torch.float64))
    fitted = refit(given.x, codes, given.atoms, engine=engine).values
    gradient = (given.x - fitted @ given.atoms) @ given.atoms.T
    assert gradient.max() < 1e-9
    assert (gradient * (fitted > 0)).abs().max() < 1e-9
    expected = error(given.x, reference(given.x, codes, given.atoms), given.atoms)
    torch.testing.assert_close(error(given.x, fitted, given.atoms), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("signed", [False, True])
def test_dependent_atoms_share_what_one_would_get(
    dtype: torch.dtype, signed: bool, engine: str
) -> None:
    given = problem(n=20, d=16, m=24, dtype=dtype)
    atoms = given.atoms.repeat(2, 1)
    atoms[30] = 0.0  # a dead atom in the support of every row
    codes = Codes.from_dense(torch.zeros(20, 48, dtype=dtype))
    codes.values[:, [0, 24, 5, 29, 6, 30, 7]] = 0.3
    fitted = refit(given.x, codes, atoms, engine=engine, signed=signed).values
    assert fitted.isfinite().all()
    assert (fitted[codes.values == 0] == 0).all()
    assert (fitted[:, 30] == 0).all()
    alone = Codes.from_dense(codes.values[:, :24].contiguous())
    once = refit(given.x, alone, given.atoms, engine=engine, signed=signed).values
    both = fitted @ atoms
    torch.testing.assert_close(both, once @ given.atoms, rtol=0, atol=10 * TOLERANCE[dtype])


def test_rows_without_codes_stay_empty(engine: str) -> None:
    given = problem(n=6)
    codes = omp(*given, 5)
    codes.values[2] = 0.0
    fitted = refit(given.x, codes, given.atoms, engine=engine)
    assert (fitted.values[2] == 0).all()
    torch.testing.assert_close(fitted.values, codes.values, rtol=0, atol=1e-10)
    nothing = Codes.from_dense(torch.zeros(6, 48, dtype=torch.float64))
    assert (refit(given.x, nothing, given.atoms, engine=engine).values == 0).all()
    some = Codes.from_dense(codes.dense())
    torch.testing.assert_close(
        refit(given.x, some, given.atoms, engine=engine).values, codes.dense()
    )


@pytest.mark.parametrize("n", [0, 1, 1000])
def test_engines_agree_for_any_number_of_rows(n: int) -> None:
    pytest.importorskip("numba")
    given = problem(n=n, d=24, m=70)
    codes = TopK(12)(given.x @ given.atoms.T, 0.0)
    plain = refit(given.x, codes, given.atoms, engine="torch").values
    compiled = refit(given.x, codes, given.atoms, engine="compiled").values
    torch.testing.assert_close(plain, compiled, rtol=0, atol=1e-10)


def test_strides_do_not_matter(engine: str) -> None:
    given = problem(n=20)
    codes = omp(*given, 5)
    assert codes.indices is not None
    halved = Codes((0.5 * codes.values).T.contiguous().T, codes.indices.T.contiguous().T, 48)
    wide = given.x.repeat_interleave(2, dim=1)[:, ::2]
    fitted = refit(wide, halved, given.atoms.T.contiguous().T, engine=engine)
    torch.testing.assert_close(fitted.values, codes.values, rtol=0, atol=1e-10)


def test_the_shapes_must_fit() -> None:
    given = problem(n=4)
    with pytest.raises(InputError, match="transposed"):
        refit(given.x, omp(*given, 3), given.atoms.T)


def test_refitted_fits_what_another_inference_chose() -> None:
    given, prox = problem(), Soft(0.1)
    dictionary = dictionary_of(given.atoms)
    inner = Iterative(Fista())
    inference = Refitted(inner)
    inference.build(dictionary, prox)
    inference.reset(dictionary)
    assert not inference.differentiable
    solution = inference(given.x, dictionary.atoms, prox)
    chosen = inner(given.x, dictionary.atoms, prox)
    expected = refit(given.x, chosen.codes, given.atoms)
    torch.testing.assert_close(solution.codes.values, expected.values)
    torch.testing.assert_close(solution.gap, chosen.gap)
    again = Refitted(OrthogonalMatchingPursuit())(given.x, given.atoms, TopK(4)).codes
    torch.testing.assert_close(again.dense(), omp(*given, 4).dense(), rtol=0, atol=1e-10)


def trained_encoder() -> tuple[Refitted, Dictionary]:
    dictionary = dictionary_of(problem().atoms)
    inference = Refitted(Unrolled(2))
    inference.build(dictionary, TopK(4))
    return inference, dictionary


def test_an_encoder_is_refitted_in_use_and_learns_as_it_is() -> None:
    inference, dictionary = trained_encoder()
    given, prox = problem(), TopK(4)
    assert inference.differentiable
    own = inference.inference(given.x, dictionary.atoms, prox).codes
    learning = inference.train()(given.x, dictionary.atoms, prox).codes
    torch.testing.assert_close(learning.values, own.values)
    assert learning.values.requires_grad
    used = inference.eval()(given.x, dictionary.atoms, prox).codes
    assert not used.values.requires_grad
    torch.testing.assert_close(used.dense(), refit(given.x, own, given.atoms).dense())
    better = error(given.x, used.dense(), given.atoms)
    assert (better < error(given.x, own.dense().detach(), given.atoms)).all()


def test_refitted_passes_on_what_the_learner_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    inference, dictionary = trained_encoder()
    inner = inference.inference
    assert inference.needs_price == inner.needs_price
    assert inference.boundaries == inner.boundaries
    assert isinstance(inner, Unrolled)
    heard: list[object] = []
    monkeypatch.setattr(inner, "advance", heard.append)
    monkeypatch.setattr(inner, "observe", heard.append)
    inference.advance(0.25)
    inference.observe(torch.tensor(3.0))
    assert heard == [0.25, torch.tensor(3.0)]
    with torch.no_grad():
        for threshold in inner.thresholds:
            threshold.fill_(9.0)
    inference.reset_atoms(dictionary, torch.tensor([1]))
    assert inner.thresholds[0][1] == 0
    assert inner.thresholds[0][2] == 9


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gpu_gives_the_same_codes(dtype: torch.dtype) -> None:
    given = problem(n=100, d=32, m=48, dtype=dtype)
    codes = TopK(8)(given.x @ given.atoms.T, 0.0)
    assert codes.indices is not None
    there = Codes(codes.values.cuda(), codes.indices.cuda(), 48)
    fitted = refit(given.x.cuda(), there, given.atoms.cuda())
    close(fitted.values.cpu(), refit(given.x, codes, given.atoms).values, dtype)
