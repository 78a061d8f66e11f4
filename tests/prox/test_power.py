"""The annealed power penalty: its formula, its schedule and its limits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.errors import InputError
from dictlearn.prox import Moment, Power, Soft

EPS = 1e-2


def some_codes() -> Tensor:
    g = torch.Generator().manual_seed(0)
    drawn = torch.rand(20, 30, generator=g, dtype=torch.float64)
    return drawn * (torch.rand(20, 30, generator=g, dtype=torch.float64) < 0.2)


def moment(fraction: float) -> Moment:
    return Moment(fraction, 0, 0)


def test_p_falls_linearly_between_the_two_shares_of_the_run() -> None:
    power = Power(0.1, p_start=1.0, p_end=0.2, start_fraction=0.2, end_fraction=0.6)
    shares = [0.0, 0.19, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0]
    found = [power.at(moment(share)).p_end for share in shares]
    assert found == pytest.approx([1.0, 1.0, 1.0, 0.8, 0.6, 0.2, 0.2, 0.2])
    at_once = Power(0.1, p_end=0.5, start_fraction=0.5, end_fraction=0.5)
    assert [at_once.at(moment(share)).p_end for share in (0.49, 0.5)] == [1.0, 0.5]


def test_what_a_step_is_given_does_not_change_any_more() -> None:
    now = Power(0.1, target_l0=32).at(moment(0.5))
    assert now.at(moment(0.0)) == now.at(moment(1.0)) == now
    assert now.target_l0 == 32


def test_at_p_1_it_is_l1_in_value_and_gradient() -> None:
    values = some_codes().requires_grad_(True)
    price = Power(0.1).at(moment(0.0)).value(Codes.from_dense(values))
    torch.testing.assert_close(price, Soft(0.1).value(Codes.from_dense(values)))
    (gradient,) = torch.autograd.grad(price.sum(), values)
    positive = values > 0
    torch.testing.assert_close(gradient[positive], torch.full_like(values[positive], 0.1))


def test_the_penalty_keeps_the_scale_of_l1_while_p_falls() -> None:
    codes = Codes.from_dense(some_codes())
    l1 = 0.1 * codes.l1().mean()
    for share in (0.3, 0.6, 1.0):
        torch.testing.assert_close(Power(0.1).at(moment(share)).value(codes).mean(), l1)


def test_value_and_gradient_are_those_of_the_formula_with_the_scale_as_a_constant() -> None:
    values = some_codes().requires_grad_(True)
    power = Power(0.1, p_end=0.4)
    price = power.value(Codes.from_dense(values))
    powers = ((values + EPS) ** 0.4 - EPS**0.4).sum(1)
    scale = float(0.1 * values.sum() / powers.sum())
    torch.testing.assert_close(price, scale * powers)
    (gradient,) = torch.autograd.grad(price.sum(), values)
    torch.testing.assert_close(gradient, scale * 0.4 * (values + EPS) ** -0.6)


def test_small_codes_cost_more_and_large_ones_less_than_under_l1() -> None:
    values = torch.tensor([[0.02, 1.0]], dtype=torch.float64, requires_grad=True)
    price = Power(0.1).value(Codes.from_dense(values)).sum()
    (gradient,) = torch.autograd.grad(price, values)
    assert gradient[0, 0] > 0.2
    assert 0 < gradient[0, 1] < 0.05


def test_codes_that_are_zero_cost_nothing_and_break_nothing() -> None:
    raw = torch.zeros(3, 5, requires_grad=True)
    price = Power(0.1).value(Power(0.1)(raw, 0.0))
    assert (price == 0).all()
    (gradient,) = torch.autograd.grad(price.sum(), raw)
    assert (gradient == 0).all()


def test_k_sparse_codes_cost_the_same_as_dense_ones() -> None:
    dense = some_codes()
    kept = dense.topk(30, dim=1)
    sparse = Codes(kept.values, kept.indices, 30)
    power = Power(0.1)
    torch.testing.assert_close(power.value(sparse), power.value(Codes.from_dense(dense)))


def test_another_price_changes_nothing_else() -> None:
    codes = Codes.from_dense(some_codes())
    power = Power(0.1, p_end=0.3, target_l0=8)
    dearer = power.priced(torch.tensor(0.2))
    torch.testing.assert_close(dearer.value(codes), 2 * power.value(codes))
    assert (dearer.p_end, dearer.target_l0) == (0.3, 8)
    assert not power.convex


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"lambda_": 0.0}, "prox.lambda_=0"),
        ({"lambda_": -1.0}, "prox.lambda_"),
        ({"p_end": 0.0}, "prox.p_end=0"),
        ({"p_start": 1.5}, "prox.p_start"),
        ({"eps": 0.0}, "prox.eps=0"),
        ({"start_fraction": 0.8, "end_fraction": 0.5}, "prox.end_fraction=0.5"),
        ({"start_fraction": 2.0}, "prox.start_fraction"),
        ({"target_l0": 0.0}, "prox.target_l0=0"),
    ],
)
def test_a_wrong_number_is_told_by_its_key(wrong: dict[str, float], key: str) -> None:
    with pytest.raises(InputError, match=key):
        Power(**{"lambda_": 0.1, **wrong})
