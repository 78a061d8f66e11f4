"""Layers that work on a few candidates of every row, in torch and compiled."""

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.errors import InputError
from dictlearn.inference import Unrolled
from dictlearn.inference.conjugate import approach
from dictlearn.inference.refit import refit
from dictlearn.prox import BatchTopK, Prox, Soft, TopK
from tests.inference.problems import dictionary_of, problem
from tests.inference.test_unrolled_family import built, disturbed, same_gradients

compiled = pytest.mark.skipif(
    importlib.util.find_spec("numba") is None, reason="needs the extra cpu"
)


def masked_topk(v: Tensor, k: int, allowed: Tensor) -> Tensor:
    best = v.masked_fill(~allowed, -torch.inf).topk(k, dim=1).indices
    return torch.relu(v) * torch.zeros_like(v).scatter(1, best, 1.0)


@pytest.mark.parametrize("rescreen", [False, True])
@pytest.mark.parametrize("momentum", [False, True])
def test_layers_on_candidates_are_the_masked_dense_formula(rescreen: bool, momentum: bool) -> None:
    given, prox = problem(), TopK(4)
    options: dict[str, Any] = {"n_candidates": 7, "rescreen": rescreen, "momentum": momentum}
    encoder, dictionary = built(given, prox, n_layers=4, **options)
    disturbed(encoder)
    codes = encoder(given.x, dictionary.atoms, prox).codes
    atoms = dictionary.atoms
    a = before = torch.zeros(24, 48, dtype=torch.float64)
    allowed = a > 0
    for t in range(4):
        y = a + encoder.betas[t - 1] * (a - before) if momentum and t > 0 else a
        v = y + encoder.log_steps[t].exp() * (given.x - y @ atoms) @ atoms.T - encoder.thresholds[t]
        if t == 0 or (rescreen and t == 2):
            best = v.detach().topk(7, dim=1).indices
            allowed = torch.zeros_like(v).scatter(1, best, 1.0) > 0
        before, a = a, masked_topk(v, 4, allowed)
    torch.testing.assert_close(codes.dense(), a)
    same_gradients(codes.dense(), a, [atoms, *encoder.parameters()])


@pytest.mark.parametrize("prox", [TopK(4), BatchTopK(4)])
def test_all_atoms_as_candidates_are_no_restriction(prox: Prox) -> None:
    given = problem()
    narrow, dictionary = built(given, prox, n_layers=3, n_candidates=48)
    wide, _ = built(given, prox, n_layers=3)
    found = [encoder.train()(given.x, dictionary.atoms, prox) for encoder in (narrow, wide)]
    dense = [solution.codes.dense() for solution in found]
    torch.testing.assert_close(*dense)
    same_gradients(dense[0], dense[1], [dictionary.atoms])


def test_a_second_screening_lets_atoms_in_that_the_first_left_out() -> None:
    given, prox = problem(n=200), TopK(4)
    supports = []
    for rescreen in (False, True):
        options: dict[str, Any] = {"n_layers": 6, "n_candidates": 5, "rescreen": rescreen}
        encoder, dictionary = built(given, prox, **options)
        first = TopK(5)(given.x @ given.atoms.T, 0.0).dense() > 0
        supports.append(
            ((encoder(given.x, dictionary.atoms, prox).codes.dense() > 0) & ~first).sum()
        )
    assert supports[0] == 0
    assert supports[1] > 20


@compiled
@pytest.mark.parametrize("prox", [TopK(4), BatchTopK(4), TopK(1)])
@pytest.mark.parametrize("rescreen", [False, True])
@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("weights", ["tied", "shared"])
def test_compiled_layers_are_those_of_torch(
    prox: Prox, rescreen: bool, warm: bool, weights: str
) -> None:
    given = problem(n=65, dtype=torch.float32)
    start = TopK(5)(given.x @ given.atoms.T, 0.3) if warm else None
    found = []
    for engine in ("torch", "compiled"):
        encoder = Unrolled(
            5, weights, n_candidates=11, rescreen=rescreen, engine=engine, selection="exact"
        )
        dictionary = dictionary_of(given.atoms)
        encoder.build(dictionary, prox)
        disturbed(encoder, by=0.05)
        encoder.train()(given.x, dictionary.atoms, prox)
        with torch.no_grad():
            found.append(encoder.eval()(given.x, dictionary.atoms, prox, initial=start).codes)
    first, second = (codes.dense() for codes in found)
    close = torch.isclose(first, second, rtol=1e-4, atol=1e-5).all(1)
    assert close.float().mean() > 0.95  # two scores may be equal up to rounding
    assert first.any()
    for codes in found:
        assert_distinct(codes)


def assert_distinct(codes: Codes) -> None:
    assert codes.indices is not None
    for row, values in zip(codes.indices, codes.values, strict=True):
        active = row[values > 0].tolist()
        assert len(set(active)) == len(active)


@compiled
@pytest.mark.parametrize("k", [1, 3, 8, 9])
def test_the_compiled_choice_is_the_k_largest(k: int) -> None:
    from dictlearn.inference.compiled.layers import restricted_layers

    cases = {
        "spread": torch.rand(20, 9),
        "few positive": torch.rand(20, 9) - 0.8,
        "none positive": -torch.rand(20, 9),
        "equal": torch.ones(20, 9),
        "two values": (torch.rand(20, 9) > 0.5).float() + 1,
        "far apart": torch.rand(20, 9) ** 20 * 1e6,
    }
    for name, scores in cases.items():
        # With the unit vectors as atoms and a step of one, the scores are the rows themselves.
        unit = torch.eye(9).numpy()
        found = restricted_layers(
            scores.numpy(),
            (unit, unit),
            torch.ones(1).numpy(),
            torch.zeros(1, 9).numpy(),
            torch.tensor([k]).numpy(),
            torch.arange(9).expand(20, -1).contiguous().numpy(),
            (torch.zeros(20, 0).numpy(), torch.zeros(20, 0, dtype=torch.int64).numpy()),
            scores.clone().numpy(),
            torch.zeros(20, 0).numpy(),
            False,
        )
        expected = scores.clamp_min(0).topk(k, dim=1).values.sort(dim=1).values
        kept = torch.from_numpy(found).topk(k, dim=1).values.sort(dim=1).values
        smallest = 1e-9 * float(scores.amax().clamp_min(0))
        torch.testing.assert_close(kept, expected, rtol=1e-6, atol=smallest, msg=name)
        assert ((found > 0).sum(1) <= k).all(), name


@compiled
@pytest.mark.parametrize("n", [1, 3])
def test_few_rows_zero_rows_and_equal_atoms_are_coded_too(n: int) -> None:
    given = problem(n=n, dtype=torch.float32)
    atoms = given.atoms.clone()
    atoms[5] = atoms[4]
    x = torch.cat([given.x, torch.zeros(1, 16), given.x[:1]])
    encoder = Unrolled(3, n_candidates=9, engine="compiled")
    dictionary = dictionary_of(atoms)
    encoder.build(dictionary, TopK(4))
    with torch.no_grad():
        codes = encoder.eval()(x, dictionary.atoms, TopK(4)).codes
    assert not codes.dense()[n].any()
    torch.testing.assert_close(codes.dense()[n + 1], codes.dense()[0])


def test_refitted_codes_are_the_least_squares_of_their_support_at_use_only() -> None:
    given, prox = problem(), TopK(4)
    plain, dictionary = built(given, prox, n_layers=2)
    refitting, _ = built(given, prox, n_layers=2, refit=True)
    training = refitting.train()(given.x, dictionary.atoms, prox).codes
    torch.testing.assert_close(
        training.dense(), plain.train()(given.x, dictionary.atoms, prox).codes.dense()
    )
    with torch.no_grad():
        before = plain.eval()(given.x, dictionary.atoms, prox).codes
        after = refitting.eval()(given.x, dictionary.atoms, prox).codes
        assert ((after.dense() > 0) <= (before.dense() > 0)).all()
        residual = given.x - dictionary.decode(after)
        active = after.dense() > 0
        assert (residual @ given.atoms.T)[active].abs().amax() < 1e-8
        old = (given.x - dictionary.decode(before)).square().sum(1)
        assert (residual.square().sum(1) <= old + 1e-12).all()
        assert residual.square().sum() < 0.99 * old.sum()


def test_candidates_that_do_not_fit_are_told_by_their_key() -> None:
    given = problem()
    with pytest.raises(InputError, match=r"n_candidates=.*prox=topk"):
        built(given, Soft(0.1), n_candidates=8)
    for count, prox in ((3, TopK(4)), (49, TopK(4)), (9, TopK(4, sampled=[2, 10]))):
        with pytest.raises(InputError, match=rf"n_candidates={count} must be between"):
            built(given, prox, n_candidates=count)
    with pytest.raises(InputError, match=r"inference\.rescreen=true needs"):
        Unrolled(2, rescreen=True)


@compiled
@pytest.mark.parametrize("rescreen", [False, True])
def test_rounded_scores_of_inner_layers_hardly_change_the_codes(rescreen: bool) -> None:
    given, prox = problem(n=65, dtype=torch.float32), TopK(4)
    found = []
    for selection in ("exact", "fast"):
        encoder, dictionary = built(
            given, prox, n_layers=4, n_candidates=11, rescreen=rescreen, selection=selection
        )
        disturbed(encoder, by=0.05)
        for threshold in encoder.thresholds:
            threshold.data += 0.4  # most scores are negative now
        with torch.no_grad():
            found.append(encoder.eval()(given.x, dictionary.atoms, prox).codes)
    first, second = (codes.dense() for codes in found)
    same = ((first > 0) == (second > 0)).all(1)
    assert same.float().mean() > 0.7
    torch.testing.assert_close(second[same], first[same], rtol=0.1, atol=0.05)
    assert_distinct(found[1])


def test_refit_steps_come_nearer_to_the_least_squares_and_reach_it() -> None:
    given = problem()
    codes = TopK(4)(0.5 * given.x @ given.atoms.T, 0.0)
    wanted = refit(given.x, codes, given.atoms)

    def error(some: Codes) -> Tensor:
        return (given.x - some.dense() @ given.atoms).square().sum(1)

    positive = (wanted.dense() > 0).eq(codes.dense() > 0).all(1)
    assert positive.float().mean() > 0.5
    before = error(codes)
    for steps in range(1, 5):
        now = error(approach(given.x, codes, given.atoms, steps, "torch"))
        assert (now <= before + 1e-12)[positive].all()
        before = now
    found = approach(given.x, codes, given.atoms, 4, "torch").dense()
    torch.testing.assert_close(found[positive], wanted.dense()[positive])
    assert (found >= 0).all()
    assert ((found > 0) <= (codes.dense() > 0)).all()
    assert found[~positive].eq(0).any() or bool(positive.all())


@compiled
def test_compiled_refit_steps_are_those_of_torch() -> None:
    given = problem(n=65, dtype=torch.float32)
    x = torch.cat([given.x, torch.zeros(1, 16)])
    codes = TopK(6)(0.5 * x @ given.atoms.T, 0.5)
    assert (codes.values == 0).any()
    given_values = codes.values.clone()
    for steps in (1, 2, 9):
        one, two = (
            approach(x, codes, given.atoms, steps, engine) for engine in ("torch", "compiled")
        )
        torch.testing.assert_close(one.dense(), two.dense(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(codes.values, given_values)
    dense = approach(x, Codes.from_dense(codes.dense()), given.atoms, 2, "compiled")
    two = approach(x, codes, given.atoms, 2, "compiled")
    torch.testing.assert_close(dense.dense(), two.dense(), rtol=1e-5, atol=1e-6)


def test_an_encoder_refits_in_steps_at_use_only() -> None:
    given, prox = problem(), TopK(4)
    plain, dictionary = built(given, prox, n_layers=2)
    refitting, _ = built(given, prox, n_layers=2, refit=True, refit_steps=2)
    training = refitting.train()(given.x, dictionary.atoms, prox).codes
    expected = plain.train()(given.x, dictionary.atoms, prox).codes
    torch.testing.assert_close(training.dense(), expected.dense())
    with torch.no_grad():
        before = plain.eval()(given.x, dictionary.atoms, prox).codes
        after = refitting.eval()(given.x, dictionary.atoms, prox).codes
    wanted = approach(given.x, before, given.atoms, 2)
    torch.testing.assert_close(after.dense(), wanted.dense())
    assert not torch.equal(after.dense(), before.dense())
    with pytest.raises(InputError, match=r"inference\.refit_steps"):
        Unrolled(2, refit_steps=0)
