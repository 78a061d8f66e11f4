"""The gated autoencoder is its published formula, and each term moves its own path."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from dictlearn.errors import InputError
from dictlearn.inference import Gated, Solution
from dictlearn.losses import AuxK, Objective, Scored, View
from dictlearn.prox import Power, Prox, Relu, Soft, TopK
from tests.inference.problems import dictionary_of, problem

LAMBDA = 0.06
PARAMETERS = ("analysis", "log_magnitude", "gate_bias", "magnitude_bias")


class Parts(NamedTuple):
    x: Tensor
    atoms: Tensor
    gated: Gated


def parts(n: int = 24, shut: float = 0.0) -> Parts:
    x, atoms = problem(n=n)
    gated = Gated()
    gated.build(dictionary_of(atoms), Soft(LAMBDA))
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for entries in gated.parameters():
            entries.add_(0.1 * torch.randn(entries.shape, generator=g, dtype=x.dtype))
        gated.gate_bias.sub_(shut)
    return Parts(x, atoms.clone().requires_grad_(True), gated)


def published(p: Parts) -> tuple[Tensor, Tensor, Tensor]:
    """Rajamanoharan et al. 2024, eq. 8 with halved squares: the three terms, mean over rows."""
    g = p.gated
    gate = p.x @ g.analysis.T + g.gate_bias
    magnitude = (p.x @ g.analysis.T) * g.log_magnitude.exp() + g.magnitude_bias
    codes = torch.where(gate > 0, magnitude.relu(), 0.0)
    error = 0.5 * (p.x - codes @ p.atoms).square().sum(1).mean()
    price = LAMBDA * gate.relu().sum(1).mean()
    auxiliary = 0.5 * (p.x - gate.relu() @ p.atoms.detach()).square().sum(1).mean()
    return error, price, auxiliary


def ours(p: Parts) -> Tensor:
    solution: Solution = p.gated(p.x, p.atoms, Soft(LAMBDA))
    n, m = len(p.x), len(p.atoms)
    view = View(
        p.x,
        solution.codes.dense() @ p.atoms,
        solution,
        dictionary_of(p.atoms),
        p.gated,
        Soft(LAMBDA),
        torch.ones(n, dtype=p.x.dtype),
        torch.zeros(m, dtype=torch.bool),
        torch.zeros(m, dtype=torch.int64),
    )
    return Objective()(view)


def gradients(p: Parts, loss: Tensor) -> dict[str, Tensor]:
    named = {"atoms": p.atoms} | dict(p.gated.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {
        name: gradient
        for name, gradient in zip(named, found, strict=True)
        if gradient is not None and gradient.abs().sum() > 0
    }


@pytest.mark.parametrize(("n", "shut"), [(1, 0.0), (1, 1.0), (24, 0.0), (24, 1.5)])
def test_loss_and_gradients_are_those_of_the_published_formula(n: int, shut: float) -> None:
    p = parts(n, shut)
    found_sparse = p.gated(p.x, p.atoms, Soft(LAMBDA)).codes.indices is not None
    assert found_sparse == (shut > 0)
    expected = sum(published(p), torch.zeros((), dtype=p.x.dtype))
    torch.testing.assert_close(ours(p), expected)
    found, by_hand = gradients(p, ours(p)), gradients(p, expected)
    assert set(found) == set(by_hand) == {"atoms", *PARAMETERS}
    for name in found:
        torch.testing.assert_close(found[name], by_hand[name], msg=name)


@pytest.mark.parametrize("shut", [0.0, 1.5])
def test_each_term_moves_its_own_path(shut: float) -> None:
    p = parts(shut=shut)
    solution = p.gated(p.x, p.atoms, Soft(LAMBDA))
    error = (p.x - solution.codes.dense() @ p.atoms).square().sum()
    assert set(gradients(p, error)) == {"atoms", "analysis", "log_magnitude", "magnitude_bias"}
    solution = p.gated(p.x, p.atoms, Soft(LAMBDA))
    assert solution.extra_loss is not None
    of_gates = solution.extra_loss + LAMBDA * solution.codes.l1()
    assert set(gradients(p, of_gates.sum())) == {"analysis", "gate_bias"}


def test_the_codes_carry_no_price_once_the_encoder_has_taken_it_over() -> None:
    p = parts()
    solution = p.gated(p.x, p.atoms, Soft(LAMBDA))
    charged = Soft(LAMBDA).value(solution.codes) + solution.extra_loss
    found = gradients(p, charged.sum())
    assert "log_magnitude" not in found
    assert "magnitude_bias" not in found


def test_a_gate_that_is_shut_lets_nothing_through_and_an_open_one_does_not_shrink() -> None:
    p = parts()
    with torch.no_grad():
        p.gated.gate_bias[:24] = -100.0
        p.gated.gate_bias[24:] = 100.0
    codes = p.gated(p.x, p.atoms, Soft(LAMBDA)).codes.dense()
    assert (codes[:, :24] == 0).all()
    strength = (p.x @ p.gated.analysis.T) * p.gated.log_magnitude.exp() + p.gated.magnitude_bias
    torch.testing.assert_close(codes[:, 24:], strength[:, 24:].relu())


def test_the_initial_encoder_is_the_dictionary_with_equal_paths() -> None:
    x, atoms = problem()
    gated, dictionary = Gated(), dictionary_of(atoms)
    gated.build(dictionary, Soft(LAMBDA))
    with torch.no_grad():
        for entries in gated.parameters():
            entries.fill_(3.0)
    gated.reset(dictionary)
    torch.testing.assert_close(gated(x, atoms, Soft(LAMBDA)).codes.dense(), (x @ atoms.T).relu())


def test_replaced_atoms_start_anew_and_the_others_stay() -> None:
    p = parts()
    before = {name: entries.clone() for name, entries in p.gated.named_parameters()}
    some = torch.tensor([2, 7])
    p.gated.reset_atoms(dictionary_of(p.atoms), some)
    others = [c for c in range(len(p.atoms)) if c not in (2, 7)]
    for name, entries in p.gated.named_parameters():
        assert torch.equal(entries[others], before[name][others]), name
        first = p.atoms[some] if name == "analysis" else torch.zeros(2, dtype=p.x.dtype)
        assert torch.equal(entries[some], first), name


def test_scores_are_the_gates_so_that_dead_atoms_can_be_brought_back() -> None:
    p = parts()
    assert isinstance(p.gated, Scored)
    every = p.gated.scores(p.x, p.atoms, None)
    some = torch.tensor([5, 1])
    torch.testing.assert_close(p.gated.scores(p.x, p.atoms, some), every[:, [5, 1]])
    fires = p.gated(p.x, p.atoms, Soft(LAMBDA)).codes.dense() > 0
    assert (every[fires] > 0).all()
    AuxK().check(48, p.gated)


def test_at_use_nothing_is_added_to_a_loss_and_a_certificate_can_be_had() -> None:
    p = parts()
    p.gated.eval()
    solution = p.gated(p.x, p.atoms, Soft(LAMBDA), certify=True)
    assert solution.extra_loss is None
    assert torch.isfinite(solution.gap).all()
    assert torch.isinf(p.gated(p.x, p.atoms, Soft(LAMBDA)).gap).all()


@pytest.mark.parametrize("prox", [TopK(4), Relu(), Power(0.1)])
def test_a_sparsity_without_a_price_for_gates_is_refused(prox: Prox) -> None:
    with pytest.raises(InputError, match="choose prox=soft"):
        Gated().build(dictionary_of(problem().atoms), prox)
