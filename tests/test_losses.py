"""Every loss term is the published formula, and moves what it should and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.dictionary import Dictionary
from dictlearn.errors import InputError
from dictlearn.inference import Fista, Inference, Iterative, Solution, Unrolled, training_loss
from dictlearn.losses import AuxK, Loss, Matryoshka, Objective, View
from dictlearn.prox import Prox, Soft, TopK
from tests.inference.problems import problem

M, D, N, K = 48, 16, 24, 4
DEAD = (3, 17, 20, 21, 40)


class Autoencoder(NamedTuple):
    """A one-layer encoder over a dictionary with a bias, and the rows to be coded."""

    dictionary: Dictionary
    inference: Unrolled
    prox: Prox
    raw: Tensor

    def view(self, dead: tuple[int, ...] = (), weight: Tensor | None = None) -> View:
        x = self.dictionary.centre(self.raw)
        solution: Solution = self.inference(x, self.dictionary.atoms, self.prox)
        is_dead = torch.zeros(M, dtype=torch.bool)
        is_dead[list(dead)] = True
        idle = torch.arange(M) + 100 * is_dead
        return View(
            x,
            self.dictionary.decode(solution.codes),
            solution,
            self.dictionary,
            self.inference,
            self.prox,
            torch.ones(len(x), dtype=x.dtype) if weight is None else weight,
            is_dead,
            idle,
        )

    def gradients(self, loss: Callable[[View], Tensor], **of_view: Any) -> dict[str, Tensor]:
        """Return every gradient that is not zero, by the name of its parameter."""
        named = dict([*self.dictionary.named_parameters(), *self.inference.named_parameters()])
        value = loss(self.view(**of_view))
        found = torch.autograd.grad(value, list(named.values()), allow_unused=True)
        both = zip(named, found, strict=True)
        return {name: grad for name, grad in both if grad is not None and grad.abs().sum() > 0}


@pytest.fixture(params=["shared", "tied"])
def weights(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def made(weights: str = "shared", prox: Prox | None = None, n: int = N) -> Autoencoder:
    x, atoms = problem(n=n, d=D, m=M)
    dictionary = Dictionary(M, D, bias=True).double()
    prox = TopK(K) if prox is None else prox
    inference = Unrolled(n_layers=1, weights=weights, initial_step=0.8)
    inference.build(dictionary, prox)
    inference.double()
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        dictionary.atoms.copy_(atoms)
        assert dictionary.bias is not None
        dictionary.bias.copy_(0.1 * torch.randn(D, generator=g, dtype=x.dtype))
        inference.reset(dictionary)
        for weight in inference.analysis:
            weight.add_(0.1 * torch.randn(M, D, generator=g, dtype=x.dtype))
        inference.thresholds[0].add_(0.05 * torch.randn(M, generator=g, dtype=x.dtype))
    return Autoencoder(dictionary, inference, prox, x)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert set(one) == set(other)
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, other[name], msg=name)


def test_the_objective_is_error_price_and_extra_weighted_by_row() -> None:
    parts = made(prox=Soft(0.07))
    weight = torch.linspace(0.5, 2.0, N, dtype=torch.float64)
    view = parts.view(weight=weight)
    extra = torch.linspace(-1.0, 3.0, N, dtype=torch.float64)
    codes = view.solution.codes.dense()
    rows = 0.5 * (view.x - codes @ parts.dictionary.atoms).square().sum(1) + 0.07 * codes.sum(1)
    torch.testing.assert_close(Objective()(view), (weight * rows).mean())
    known = training_loss(view.x, view.decoded, view.solution.codes, view.prox, weight)
    torch.testing.assert_close(Objective()(view), known)
    view = view._replace(solution=view.solution._replace(extra_loss=extra))
    torch.testing.assert_close(Objective()(view), (weight * (rows + extra)).mean())


def test_the_objective_moves_every_parameter_of_a_shared_encoder() -> None:
    names = {"atoms", "bias", "log_steps.0", "thresholds.0", "analysis.0"}
    assert set(made().gradients(Objective())) == names


def auxiliary_by_hand(parts: Autoencoder, k_aux: int, coefficient: float, weight: Tensor) -> Tensor:
    """Gao et al. 2024, section A.2, dense: top k_aux of the dead, rectified, of the residual."""
    view = parts.view(dead=DEAD)
    residual = (view.x - view.decoded).detach()
    encoder, threshold = parts.inference.analysis[0], parts.inference.thresholds[0]
    step = parts.inference.log_steps[0].detach().exp()
    scores = view.x.detach() @ encoder.T * step - threshold
    alive = torch.ones(M, dtype=torch.bool)
    alive[list(DEAD)] = False
    scores = scores.masked_fill(alive, -torch.inf)
    kept = scores.topk(k_aux, dim=1)
    codes = torch.zeros(N, M, dtype=torch.float64).scatter(1, kept.indices, kept.values.relu())
    error = (residual - codes @ parts.dictionary.atoms).square().sum(1)
    spread = (residual - residual.mean(0)).square().sum(1)
    return 0.5 * coefficient * (weight * error).mean() / (weight * spread).mean()


@pytest.mark.parametrize("k_aux", [2, 5])
def test_auxk_is_the_published_formula_in_value_and_gradient(k_aux: int) -> None:
    parts, weight = made(), torch.linspace(0.5, 2.0, N, dtype=torch.float64)
    loss = AuxK(k_aux=k_aux, coefficient=0.25)
    value = loss.auxiliary(parts.view(dead=DEAD, weight=weight))
    expected = auxiliary_by_hand(parts, k_aux, 0.25, weight)
    assert expected > 0.01
    torch.testing.assert_close(value, expected)
    found = parts.gradients(loss.auxiliary, dead=DEAD, weight=weight)
    by_hand = parts.gradients(lambda _: auxiliary_by_hand(parts, k_aux, 0.25, weight))
    same(found, by_hand)


def test_auxk_moves_the_dead_atoms_and_their_encoder_and_nothing_else(weights: str) -> None:
    parts = made(weights)
    found = parts.gradients(AuxK(k_aux=3).auxiliary, dead=DEAD)
    of_encoder = {"analysis.0"} if weights == "shared" else set()
    assert set(found) == {"atoms", "thresholds.0"} | of_encoder
    alive = [c for c in range(M) if c not in DEAD]
    for name, gradient in found.items():
        assert (gradient[alive] == 0).all(), name
        assert (gradient[list(DEAD)] != 0).any(), name


def test_auxk_adds_to_the_main_loss_and_leaves_its_gradients_as_they_are() -> None:
    parts = made()
    loss = AuxK(k_aux=3)
    view = parts.view(dead=DEAD)
    torch.testing.assert_close(loss(view), Objective()(view) + loss.auxiliary(view))
    main, both = parts.gradients(Objective(), dead=DEAD), parts.gradients(loss, dead=DEAD)
    added = parts.gradients(loss.auxiliary, dead=DEAD)
    for name, gradient in both.items():
        torch.testing.assert_close(gradient, main[name] + added.get(name, 0.0), msg=name)


def test_auxk_is_the_main_loss_when_nothing_is_dead() -> None:
    parts = made()
    assert AuxK().auxiliary(parts.view()) == 0
    same(parts.gradients(AuxK()), parts.gradients(Objective()))


@pytest.mark.parametrize("dead", [(), DEAD])
def test_auxk_without_looking_at_the_host_is_the_same(dead: tuple[int, ...]) -> None:
    parts, loss = made(), AuxK(k_aux=3)
    value = loss.among(parts.view(dead=dead), 20)
    torch.testing.assert_close(value, loss.auxiliary(parts.view(dead=dead)))
    blind = parts.gradients(lambda view: loss.among(view, 20), dead=dead)
    same(blind, parts.gradients(loss.auxiliary, dead=dead) if dead else {})


def test_auxk_looks_at_the_longest_idle_when_there_are_too_many() -> None:
    parts = made()
    found = parts.gradients(AuxK(k_aux=2, max_candidates=2).auxiliary, dead=DEAD)
    others = [c for c in range(M) if c not in DEAD[-2:]]
    assert (found["atoms"][others] == 0).all()
    assert (found["atoms"][list(DEAD[-2:])] != 0).any()


def test_auxk_of_a_perfect_reconstruction_is_finite() -> None:
    parts = made()
    view = parts.view(dead=DEAD)
    assert torch.isfinite(AuxK().auxiliary(view._replace(decoded=view.x)))


def matryoshka_by_hand(x: Tensor, codes: Tensor, atoms: Tensor, ends: list[int]) -> Tensor:
    """Bussmann et al. 2025: every prefix decodes alone; the mean of its errors, halved."""
    total = torch.zeros((), dtype=x.dtype)
    for end in ends:
        total = total + 0.5 * (x - codes[:, :end] @ atoms[:end]).square().sum(1).mean()
    return total / len(ends)


@pytest.mark.parametrize("prox", [TopK(K), Soft(0.05)])
def test_matryoshka_is_the_published_formula_in_value_and_gradient(prox: Prox) -> None:
    parts, loss = made(prox=prox), Matryoshka((0.25, 0.5, 1.0))

    def by_hand(view: View) -> Tensor:
        codes = view.solution.codes.dense()
        error = matryoshka_by_hand(view.x, codes, parts.dictionary.atoms, [12, 24, 48])
        whole: Tensor = error + prox.lambda_ * codes.sum(1).mean()
        return whole

    torch.testing.assert_close(loss(parts.view()), by_hand(parts.view()))
    same(parts.gradients(loss), parts.gradients(by_hand))


@pytest.mark.parametrize("prox", [TopK(K), Soft(0.05)])
def test_matryoshka_with_one_prefix_is_the_objective(prox: Prox) -> None:
    parts = made(prox=prox)
    assert Matryoshka((1.0,))(parts.view()) == Objective()(parts.view())
    same(parts.gradients(Matryoshka((1.0,))), parts.gradients(Objective()))


def test_matryoshka_weighs_rows_and_takes_what_the_encoder_adds() -> None:
    parts, weight = made(), torch.linspace(0.5, 2.0, N, dtype=torch.float64)
    view = parts.view(weight=weight)
    extra = torch.linspace(0.0, 1.0, N, dtype=torch.float64)
    more = view._replace(solution=view.solution._replace(extra_loss=extra))
    added = Matryoshka()(more) - Matryoshka()(view)
    torch.testing.assert_close(added, (weight * extra).mean())
    alone = view._replace(weight=torch.eye(N, dtype=torch.float64)[3] * N)
    codes = view.solution.codes.dense()[3:4]
    ends = [3, 6, 12, 24, 48]
    expected = matryoshka_by_hand(view.x[3:4], codes, parts.dictionary.atoms, ends)
    torch.testing.assert_close(Matryoshka()(alone), expected)


def test_matryoshka_of_a_step_with_one_row_whose_codes_are_zero() -> None:
    parts = made(n=1)
    view = parts.view()
    empty = Codes(torch.zeros(1, K, dtype=torch.float64), torch.arange(K)[None], M)
    view = view._replace(
        decoded=torch.zeros_like(view.x), solution=view.solution._replace(codes=empty)
    )
    torch.testing.assert_close(Matryoshka()(view), 0.5 * view.x.square().sum())


def test_the_auxiliary_loss_goes_with_nested_dictionaries() -> None:
    parts = made()
    view = parts.view(dead=DEAD)
    main = Matryoshka((0.5, 1.0))
    both = AuxK(main=main, k_aux=3)
    torch.testing.assert_close(both(view), main(view) + AuxK(k_aux=3).auxiliary(view))


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: AuxK(k_aux=0), "loss.k_aux"),
        (lambda: AuxK(max_candidates=0), "loss.max_candidates"),
        (lambda: AuxK(coefficient=-1), "loss.coefficient"),
        (lambda: Matryoshka(()), "loss.prefixes"),
        (lambda: Matryoshka((0.5,)), "loss.prefixes"),
        (lambda: Matryoshka((0.5, 0.25, 1.0)), "loss.prefixes"),
        (lambda: Matryoshka((0.0, 1.0)), "loss.prefixes"),
        (lambda: Matryoshka((0.5, 2.0)), "loss.prefixes"),
    ],
)
def test_a_wrong_number_is_told_by_its_key(make: Callable[[], Loss], key: str) -> None:
    with pytest.raises(InputError, match=key):
        make()


def test_what_does_not_fit_is_told_before_the_run() -> None:
    exact: Inference = Iterative(Fista())
    with pytest.raises(InputError, match="loss=objective"):
        AuxK().check(M, exact)
    AuxK().check(M, made().inference)
    Objective().check(M, exact)
    with pytest.raises(InputError, match=r"dictionary\.n_atoms=8"):
        AuxK(main=Matryoshka()).check(8, made().inference)
    Matryoshka().check(M, exact)
