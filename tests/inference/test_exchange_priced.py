"""Exchange of atoms at a price: rows have as many codes as are worth it."""

from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.errors import InputError
from dictlearn.inference import ExchangePursuit, exchange_pursuit, price_for_exchange
from dictlearn.prox import BatchTopK, Soft, TopK
from tests.inference.problems import Problem, dictionary_of, problem

SMALL = problem(n=40, d=12, m=9)
LARGE = problem(n=300, d=24, m=96)


def error(given: Problem, codes: Codes) -> Tensor:
    return (given.x - codes.dense() @ given.atoms).square().sum(1)


def objective(given: Problem, codes: Codes, price: float) -> Tensor:
    return error(given, codes) + price * codes.l0().double()


@cache
def least_objective(given: Problem, price: float) -> Tensor:
    phi = given.atoms.numpy()
    held = [list(s) for k in range(len(phi) + 1) for s in combinations(range(len(phi)), k)]
    return torch.tensor(
        [
            min((nnls(phi[s].T, row)[1] ** 2 if s else row @ row) + price * len(s) for s in held)
            for row in given.x.numpy()
        ],
        dtype=torch.float64,
    )


@pytest.mark.parametrize("start", ["l1", "zero"])
@pytest.mark.parametrize("price", [0.003, 0.03])
def test_it_comes_close_to_the_best_of_all_supports(price: float, start: str, engine: str) -> None:
    best = least_objective(SMALL, price)
    codes = exchange_pursuit(*SMALL, len(SMALL.atoms), price=price, start=start, engine=engine)
    found = objective(SMALL, codes, price)
    assert (found >= best - 1e-9).all()
    assert (found <= best * 1.001 + 1e-9).double().mean() > 0.8
    assert found.mean() < 1.03 * best.mean()


def test_every_code_saves_its_price_and_is_least_squares(engine: str) -> None:
    price, phi = 0.01, LARGE.atoms.numpy()
    codes = exchange_pursuit(*LARGE, 40, price=price, engine=engine)
    assert len(set(codes.l0().tolist())) > 4
    for row, code, now in zip(
        LARGE.x.numpy()[:60], codes.dense().numpy(), error(LARGE, codes).tolist(), strict=False
    ):
        held = np.flatnonzero(code)
        if len(held):
            np.testing.assert_allclose(code[held], nnls(phi[held].T, row)[0], atol=1e-9)
        for j in held:
            without = held[held != j]
            alone = nnls(phi[without].T, row)[1] ** 2 if len(without) else row @ row
            assert alone - now >= price * (1 - 1e-6)


def test_at_equal_mean_l0_the_error_is_lower_than_with_k_codes_each(engine: str) -> None:
    price = price_for_exchange(*LARGE, 5, engine=engine)
    shared = exchange_pursuit(*LARGE, 20, price=price, engine=engine)
    each = exchange_pursuit(*LARGE, 5, engine=engine)
    assert float(shared.l0().double().mean()) == pytest.approx(5, abs=0.1)
    assert error(LARGE, shared).sum() < 0.9 * error(LARGE, each).sum()


def test_the_codes_of_a_row_depend_on_that_row_alone(engine: str) -> None:
    whole = exchange_pursuit(*LARGE, 20, price=0.01, engine=engine).dense()
    for rows in (slice(3, 4), slice(10, 13)):
        alone = exchange_pursuit(LARGE.x[rows], LARGE.atoms, 20, price=0.01, engine=engine).dense()
        torch.testing.assert_close(alone, whole[rows])


def test_no_row_has_more_codes_than_allowed_and_a_dear_price_leaves_none(engine: str) -> None:
    few = exchange_pursuit(*LARGE, 3, price=1e-4, engine=engine)
    assert few.l0().max() == 3
    energy = float(LARGE.x.square().sum(1).max())
    none = exchange_pursuit(*LARGE, 20, price=1.01 * energy, engine=engine)
    assert none.l0().sum() == 0
    assert none.values.shape[1] == 1


def test_both_engines_find_codes_as_good() -> None:
    pytest.importorskip("numba")
    found = [
        float(objective(LARGE, exchange_pursuit(*LARGE, 40, price=0.01, engine=engine), 0.01).sum())
        for engine in ("torch", "compiled")
    ]
    assert found[0] == pytest.approx(found[1], rel=0.005)


def test_a_price_that_no_rows_meet_is_an_error() -> None:
    with pytest.raises(InputError, match="no price gives l0=30"):
        price_for_exchange(*problem(n=20, d=8, m=64), 30)
    with pytest.raises(InputError, match=r"inference\.price=-1"):
        exchange_pursuit(*SMALL, 3, price=-1)


def test_training_finds_the_price_of_k_codes_on_average_and_use_keeps_it() -> None:
    inference, prox = ExchangePursuit(), BatchTopK(5)
    inference.build(dictionary_of(LARGE.atoms), prox)
    inference.reset(dictionary_of(LARGE.atoms))
    assert inference.known_price is None
    inference.eval()
    each = inference(*LARGE, prox).codes
    assert torch.equal(each.dense(), exchange_pursuit(*LARGE, 5).dense())
    inference.train()
    first = inference(*LARGE, prox).codes
    assert float(first.l0().double().mean()) == pytest.approx(5, abs=0.1)
    found = inference.known_price
    assert found is not None
    inference.eval()
    assert torch.equal(inference(*LARGE, prox).codes.dense(), first.dense())
    few = inference(LARGE.x[:7], LARGE.atoms, prox).codes
    torch.testing.assert_close(few.dense(), first.dense()[:7])
    other = inference(*LARGE, BatchTopK(3)).codes  # its price was never found
    assert torch.equal(other.dense(), exchange_pursuit(*LARGE, 3).dense())
    inference.observe(torch.tensor(10.0))  # twice as many as wanted
    assert inference.known_price == pytest.approx(found * 1.1052, rel=1e-3)
    inference.reset(dictionary_of(LARGE.atoms))
    assert inference.known_price is None


def test_more_codes_than_are_of_use_do_not_end_a_training() -> None:
    given, prox = problem(n=20, d=8, m=64), BatchTopK(30)
    inference = ExchangePursuit()
    inference.build(dictionary_of(given.atoms), prox)
    codes = inference.train()(*given, prox).codes
    assert error(given, codes).mean() < 0.1 * given.x.square().sum(1).mean()
    assert inference.known_price is not None
    assert inference.known_price > 0


def test_the_price_goes_along_with_the_state() -> None:
    dictionary, prox = dictionary_of(LARGE.atoms), BatchTopK(5)
    one, two = ExchangePursuit(), ExchangePursuit()
    for inference in (one, two):
        inference.build(dictionary, prox)
    one.train()(*LARGE, prox)
    two.load_state_dict(one.state_dict())
    assert one.known_price == two.known_price
    assert one.known_price is not None


def _first_price(rows: slice) -> float:
    inference = ExchangePursuit(engine="torch")
    inference.build(dictionary_of(LARGE.atoms), BatchTopK(5))
    inference.train()(LARGE.x[rows], LARGE.atoms, BatchTopK(5))
    assert inference.known_price is not None
    return inference.known_price


HALVES = (slice(0, 150), slice(150, None))


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    (Path(folder) / f"{rank}.txt").write_text(repr(_first_price(HALVES[rank])))
    torch.distributed.destroy_process_group()


def test_two_processes_begin_with_the_price_that_one_finds_on_all_rows(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(  # type: ignore[attr-defined, no-untyped-call]
        _process, (str(tmp_path),), nprocs=2, start_method="fork"
    )
    first, second = (float((tmp_path / f"{rank}.txt").read_text()) for rank in (0, 1))
    assert first == second == pytest.approx(_first_price(slice(None)), rel=1e-6)
    assert first != pytest.approx(_first_price(HALVES[0]), rel=1e-3)


def test_a_price_that_is_given_is_not_steered() -> None:
    inference = ExchangePursuit(price=0.01)
    inference.build(dictionary_of(LARGE.atoms), TopK(20))
    inference.train().observe(torch.tensor(100.0))
    codes = inference(*LARGE, TopK(20)).codes
    assert torch.equal(codes.dense(), exchange_pursuit(*LARGE, 20, price=0.01).dense())
    assert inference.known_price == 0.01


def test_a_sparsity_that_counts_nothing_is_refused() -> None:
    with pytest.raises(InputError, match=r"prox=soft.*prox=topk or prox=batch_topk"):
        ExchangePursuit().build(dictionary_of(SMALL.atoms), Soft(0.1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_finds_codes_as_good() -> None:
    given = problem(n=200, d=24, m=96, dtype=torch.float32)
    there = exchange_pursuit(given.x.cuda(), given.atoms.cuda(), 40, price=0.01)
    here = exchange_pursuit(*given, 40, price=0.01)
    assert there.indices is not None
    back = Codes(there.values.cpu(), there.indices.cpu(), there.n_atoms)
    assert objective(given, back, 0.01).mean() <= objective(given, here, 0.01).mean() * 1.02
