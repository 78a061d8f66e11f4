"""Greedy codes: the same as a plain loop over rows with SciPy's non-negative least squares."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.errors import InputError
from dictlearn.inference import (
    ExchangePursuit,
    GradientPursuit,
    Inference,
    MatchingPursuit,
    OrthogonalMatchingPursuit,
    PursuitEncoder,
    duality_gap,
    exchange_pursuit,
    gradient_pursuit,
    matching_pursuit,
    omp,
    pursuit_batch,
)
from dictlearn.inference.pursuit_batch import distinct
from dictlearn.prox import Soft, TopK
from tests.inference.problems import dictionary_of, problem

PURSUITS = [omp, matching_pursuit, gradient_pursuit, exchange_pursuit]
Pursue = Callable[..., Codes]


def reference_omp(
    x: Tensor, atoms: Tensor, k: int, per_step: int = 1, start: Tensor | None = None
) -> tuple[Tensor, int]:
    """Return dense codes, and how often an atom was let go."""
    phi, dropped = atoms.double().numpy(), 0
    codes = np.zeros((len(x), len(atoms)))
    for i, row in enumerate(x.double().numpy()):
        held: list[int] = [] if start is None else start[i].nonzero()[:, 0].tolist()
        first = bool(held)
        while True:
            if not first:
                c = phi @ (row - codes[i] @ phi)
                c[held] = -1
                best = [int(j) for j in np.argsort(-c)[:per_step] if c[j] > 1e-10]
                if not best or len(held) == k:
                    break
                held = [*held, *best][:k]
            first = False
            values = nnls(phi[held].T, row)[0]
            dropped += int((values == 0).sum())
            codes[i] = 0
            codes[i, held] = values
            held = [j for j in held if codes[i, j] > 0]
    return torch.from_numpy(codes), dropped


def reference_matching(row: NDArray[np.float64], phi: NDArray[np.float64], k: int) -> Tensor:
    codes = np.zeros(len(phi))
    for _ in range(k):
        c = phi @ (row - codes @ phi)
        j = int(c.argmax())
        if c[j] > 1e-12:
            codes[j] += c[j]
    return torch.from_numpy(codes)


def reference_gradient(row: NDArray[np.float64], phi: NDArray[np.float64], k: int) -> Tensor:
    codes = np.zeros(len(phi))
    while (codes > 0).sum() < k:
        c = phi @ (row - codes @ phi)
        j = int(np.where(codes > 0, -np.inf, c).argmax())
        if c[j] < 1e-12:
            break
        q = np.where(codes > 0, c, 0.0)
        q[j] = c[j]
        step = (q @ q) / np.square(q @ phi).sum()
        ratios = np.where(q < 0, codes / np.where(q < 0, -q, 1), np.inf)
        step = min(step, ratios.min())
        codes = np.where(ratios <= step, 0.0, codes + step * q)
    return torch.from_numpy(codes)


def error(x: Tensor, codes: Codes, atoms: Tensor) -> Tensor:
    return (x - codes.dense() @ atoms).square().sum(1)


def check_layout(codes: Codes, n: int, k: int, m: int) -> None:
    assert codes.indices is not None
    assert codes.values.shape == codes.indices.shape == (n, k)
    assert codes.values.isfinite().all()
    assert (codes.values >= 0).all()
    assert codes.indices.min() >= 0
    assert codes.indices.max() < m
    assert all(len(set(row)) == k for row in codes.indices.tolist())


@pytest.mark.parametrize("per_step", [1, 2, 3])
@pytest.mark.parametrize(("d", "m", "k"), [(16, 48, 7), (12, 60, 9), (64, 67, 20)])
def test_omp_is_the_brute_force_loop(d: int, m: int, k: int, per_step: int, engine: str) -> None:
    given = problem(n=40, d=d, m=m)
    expected, _ = reference_omp(*given, k, per_step)
    codes = omp(*given, k, engine=engine, atoms_per_step=per_step)
    check_layout(codes, 40, k, m)
    torch.testing.assert_close(codes.dense(), expected, rtol=0, atol=1e-10)


def test_omp_lets_atoms_go_and_takes_others(engine: str) -> None:
    given = problem(n=100, d=16, m=300)
    expected, dropped = reference_omp(*given, 14)
    assert dropped > 20
    assert ((expected > 0).sum(1) == 14).all()
    codes = omp(*given, 14, engine=engine)
    torch.testing.assert_close(codes.dense(), expected, rtol=0, atol=1e-10)


def test_omp_goes_on_from_given_codes(engine: str) -> None:
    given = problem(n=40, d=12, m=60)
    start = TopK(4)(given.x @ given.atoms.T, 0.2)
    expected, dropped = reference_omp(*given, 8, start=start.dense() > 0)
    assert dropped > 0
    codes = omp(*given, 8, engine=engine, initial=start)
    torch.testing.assert_close(codes.dense(), expected, rtol=0, atol=1e-10)
    dense = omp(*given, 8, engine=engine, initial=Codes.from_dense(start.dense()))
    torch.testing.assert_close(dense.dense(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("pursue", "reference"),
    [(matching_pursuit, reference_matching), (gradient_pursuit, reference_gradient)],
)
def test_the_cheaper_pursuits_are_plain_loops(
    pursue: Pursue, reference: Callable[..., Tensor], engine: str
) -> None:
    given = problem(n=60, d=8, m=96)
    rows = [reference(row.numpy(), given.atoms.numpy(), 6) for row in given.x]
    codes = pursue(*given, 6, engine=engine)
    check_layout(codes, 60, 6, 96)
    torch.testing.assert_close(codes.dense(), torch.stack(rows), rtol=0, atol=1e-12)


def test_matching_pursuit_sums_the_codes_of_a_repeated_atom(engine: str) -> None:
    given = problem(n=60, d=8, m=96)
    codes = matching_pursuit(*given, 12, engine=engine)
    check_layout(codes, 60, 12, 96)
    assert (codes.l0() < 12).any()
    smaller = error(given.x, matching_pursuit(*given, 11, engine=engine), given.atoms)
    assert (error(given.x, codes, given.atoms) < smaller).all()


@pytest.mark.parametrize("pursue", PURSUITS)
def test_the_error_falls_with_k(pursue: Pursue, engine: str) -> None:
    given = problem(n=30, d=16, m=64)
    errors = [error(given.x, pursue(*given, k, engine=engine), given.atoms) for k in (1, 2, 5, 9)]
    for more, fewer in zip(errors[1:], errors[:-1], strict=True):
        assert (more < fewer + 1e-12).all()
    assert errors[-1].mean() < 0.3 * errors[0].mean()


def test_orthogonal_is_better_than_gradient_and_that_than_plain(engine: str) -> None:
    given = problem(n=100, d=16, m=64)
    errors = [error(given.x, pursue(*given, 6, engine=engine), given.atoms) for pursue in PURSUITS]
    assert errors[0].mean() < errors[2].mean() < errors[1].mean()


@pytest.mark.parametrize("pursue", PURSUITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_stop_where_no_atom_is_of_use(pursue: Pursue, dtype: torch.dtype, engine: str) -> None:
    atoms = torch.eye(12, dtype=dtype)
    x = torch.zeros(5, 12, dtype=dtype)
    x[0, 3], x[0, 5], x[1, 1], x[2, :3], x[3] = 2.0, 0.5, 1.0, -1.0, 1e-12
    codes = pursue(x, atoms, 12, engine=engine)
    check_layout(codes, 5, 12, 12)
    torch.testing.assert_close(codes.dense(), x.clamp_min(0))
    assert codes.l0().tolist() == [2, 1, 0, 12, 0]


@pytest.mark.parametrize("pursue", [omp, matching_pursuit])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_equal_atoms_one_is_taken(pursue: Pursue, dtype: torch.dtype, engine: str) -> None:
    given = problem(n=20, d=16, m=24, dtype=dtype)
    twice = given.atoms.repeat(2, 1)
    codes = pursue(given.x, twice, 6, engine=engine)
    check_layout(codes, 20, 6, 48)
    once = pursue(*given, 6, engine=engine)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-11
    folded = codes.dense().view(20, 2, 24).sum(1)
    torch.testing.assert_close(folded, once.dense(), rtol=0, atol=tolerance)
    if pursue is omp:
        assert ((codes.dense().view(20, 2, 24) > 0).sum(1) <= 1).all()


@pytest.mark.parametrize("pursue", PURSUITS)
@pytest.mark.parametrize("n", [1, 3, 33, 700])
def test_engines_agree_for_any_number_of_rows(pursue: Pursue, n: int) -> None:
    pytest.importorskip("numba")
    given = problem(n=n, d=24, m=70, dtype=torch.float32)
    # The l1 start of an exchange is a rough one, and another one by another engine.
    options = {"start": "zero"} if pursue is exchange_pursuit else {}
    plain = pursue(*given, 8, engine="torch", **options)
    compiled = pursue(*given, 8, engine="compiled", **options)
    same = ((plain.dense() > 0) == (compiled.dense() > 0)).all(1)
    assert same.float().mean() > 0.99  # a tie may fall either way
    torch.testing.assert_close(plain.dense()[same], compiled.dense()[same], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pursue", PURSUITS)
def test_rows_may_be_split_and_shared_among_threads(
    pursue: Pursue, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = problem(n=500, d=16, m=48)
    expected = pursue(*given, 5, engine=engine).dense()
    for name in ("CACHED", "FITTING"):
        monkeypatch.setattr(pursuit_batch, name, 48 * 150)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        codes = pursue(*given, 5, engine=engine).dense()
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(codes, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("pursue", PURSUITS)
def test_rows_and_atoms_need_not_be_contiguous(pursue: Pursue, engine: str) -> None:
    given = problem(n=20, d=16, m=48)
    expected = pursue(*given, 5, engine=engine)
    wide = given.x.repeat_interleave(2, dim=1)[:, ::2]
    codes = pursue(wide, given.atoms.T.contiguous().T, 5, engine=engine)
    torch.testing.assert_close(codes.dense(), expected.dense())


@pytest.mark.parametrize("pursue", PURSUITS)
def test_an_empty_batch_has_no_codes(pursue: Pursue, engine: str) -> None:
    given = problem(n=4, d=16, m=48)
    assert pursue(given.x[:0], given.atoms, 5, engine=engine).values.shape == (0, 5)


def test_half_precision_rows_are_coded_in_32_bits() -> None:
    given = problem(n=8, dtype=torch.float32)
    half = given.x.bfloat16()
    codes = omp(half, given.atoms, 4)
    assert codes.values.dtype == torch.float32
    torch.testing.assert_close(codes.dense(), omp(half.float(), given.atoms, 4).dense())


@pytest.mark.parametrize("m", [5, 7, 10, 300])
def test_empty_slots_get_atoms_that_the_row_does_not_hold(m: int) -> None:
    g = torch.Generator().manual_seed(0)
    indices = torch.rand(50, m, generator=g).argsort(1)[:, :5]
    taken = torch.rand(50, 5, generator=g) < 0.5
    filled = distinct(torch.where(taken, indices, -1), taken, m)
    assert (filled[taken] == indices[taken]).all()
    assert filled.min() >= 0
    assert filled.max() < m
    assert all(len(set(row)) == 5 for row in filled.tolist())


@pytest.mark.parametrize("pursue", PURSUITS)
def test_mistakes_are_named(pursue: Pursue) -> None:
    given = problem(n=4)
    with pytest.raises(InputError, match=r"prox\.k=49 is more than the 48 atoms"):
        pursue(*given, 49)
    with pytest.raises(InputError, match="transposed"):
        pursue(given.x.T, given.atoms, 3)
    with pytest.raises(InputError, match=r"inference\.engine=fast"):
        pursue(*given, 3, engine="fast")


@pytest.mark.parametrize(
    ("inference", "pursue"),
    [
        (OrthogonalMatchingPursuit(), omp),
        (ExchangePursuit(), exchange_pursuit),
        (
            ExchangePursuit(1, 3, start="zero"),
            lambda *a: exchange_pursuit(*a, rounds=1, block=3, start="zero"),
        ),
        (OrthogonalMatchingPursuit(2, "torch"), lambda *a: omp(*a, atoms_per_step=2)),
        (MatchingPursuit(), matching_pursuit),
        (GradientPursuit(), gradient_pursuit),
        (PursuitEncoder(), matching_pursuit),
    ],
)
def test_the_inferences_take_k_from_the_sparsity(inference: Inference, pursue: Pursue) -> None:
    given, prox = problem(), TopK(5)
    dictionary = dictionary_of(given.atoms)
    inference.build(dictionary, prox)
    inference.reset(dictionary)
    inference.reset_atoms(dictionary, torch.tensor([0]))
    assert not list(inference.parameters())
    solution = inference(given.x, dictionary.atoms, TopK(4), certify=True)
    expected = pursue(*given, 4)
    torch.testing.assert_close(solution.codes.dense(), expected.dense(), rtol=0, atol=1e-12)
    torch.testing.assert_close(solution.gap, duality_gap(given.x, expected, given.atoms, prox))
    assert solution.steps == 4
    assert solution.codes.values.requires_grad == inference.differentiable
    assert inference(given.x, given.atoms, prox).gap.isinf().all()


@pytest.mark.parametrize("inference", [OrthogonalMatchingPursuit(), PursuitEncoder()])
def test_a_pursuit_needs_a_number_of_codes(inference: Inference) -> None:
    with pytest.raises(InputError, match=r"prox=soft .* choose prox=topk"):
        inference.build(dictionary_of(problem().atoms), Soft(0.1))
    with pytest.raises(InputError, match=r"prox\.k=49"):
        inference.build(dictionary_of(problem().atoms), TopK(49))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("pursue", PURSUITS)
def test_a_gpu_gives_the_same_codes(pursue: Pursue) -> None:
    given = problem(n=300, d=32, m=200)
    codes = pursue(given.x.cuda(), given.atoms.cuda(), 12)
    expected = pursue(*given, 12)
    torch.testing.assert_close(codes.dense().cpu(), expected.dense(), rtol=0, atol=1e-10)
