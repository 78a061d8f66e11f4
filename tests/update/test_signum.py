"""Signum: the published formula on the sphere, and atoms that nobody used."""

import torch

from dictlearn.dictionary import Dictionary
from dictlearn.update import Signum


def test_it_is_the_formula_on_the_sphere() -> None:
    dictionary = Dictionary(6, 4, bias=True).double()
    dictionary.renormalize_()
    optimizer = Signum(lr=0.01, momentum=0.8).build(list(dictionary.parameters()), [])
    g = torch.Generator().manual_seed(0)
    expected = dictionary.atoms.detach().clone()
    average = torch.zeros(6, 4, dtype=torch.float64)
    for _ in range(5):
        gradient = torch.randn(6, 4, dtype=torch.float64, generator=g)
        for j in range(6):
            tangent = gradient[j] - (gradient[j] @ expected[j]) * expected[j]
            average[j] = 0.8 * average[j] + 0.2 * tangent
            expected[j] -= 0.01 * average[j].sign()
            expected[j] /= expected[j].norm()
        dictionary.atoms.grad = gradient
        optimizer.step()
    torch.testing.assert_close(dictionary.atoms.detach(), expected)
    assert "exp_avg_sq" not in optimizer.state[dictionary.atoms]


def test_an_atom_without_a_gradient_stands_still_whatever_its_momentum() -> None:
    dictionary = Dictionary(3, 4)
    dictionary.renormalize_()
    optimizer = Signum(lr=0.01).build(list(dictionary.parameters()), [])
    dictionary.atoms.grad = torch.ones(3, 4)
    optimizer.step()
    before = dictionary.atoms.detach().clone()
    dictionary.atoms.grad = torch.ones(3, 4)
    dictionary.atoms.grad[1] = 0
    optimizer.step()
    torch.testing.assert_close(dictionary.atoms[1].detach(), before[1])
    assert (dictionary.atoms.detach() - before).abs().sum(1)[[0, 2]].min() > 0.005


def test_the_rates_of_its_parts() -> None:
    atoms, bias = Dictionary(3, 4, bias=True).parameters()
    rates = {g["role"]: g["lr"] for g in Signum(lr=0.1).build([atoms, bias], []).param_groups}
    assert rates == {"atoms": 0.1, "bias": 0.2}
    rule = Signum(lr=0.1, encoder_lr=0.3)
    assert rule.build([atoms, bias], []).param_groups[1]["lr"] == 0.3
