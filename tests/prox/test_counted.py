"""Sparsities that count: batch top-k, sampled k, the hard threshold."""

import collections
import math

import pytest
import torch

from dictlearn.codes import Codes
from dictlearn.errors import InputError
from dictlearn.prox import BatchTopK, Jump, Moment, TopK


def test_batch_topk_keeps_the_largest_of_the_whole_batch() -> None:
    v = torch.tensor([[0.9, 0.8, 0.7], [0.1, -1.0, 0.2]])
    assert BatchTopK(1)(v, 0.0).dense().tolist() == (v * (v > 0.75)).tolist()
    lowered = BatchTopK(1)(v, torch.tensor([0.5, 0.0, 0.0])).dense()
    torch.testing.assert_close(lowered, torch.tensor([[0.0, 0.8, 0.7], [0.0, 0.0, 0.0]]))
    assert BatchTopK(3)(v, 0.0).dense().tolist() == v.clamp_min(0).tolist()
    assert BatchTopK(2)(v, 0.0).l0().tolist() == [3, 1]


def test_sampled_k_is_log_uniform_in_its_range_and_a_function_of_seed_and_step() -> None:
    prox = TopK(32, sampled=[8, 128])
    drawn = [prox.at(Moment(0.0, 5, step)).k for step in range(2000)]
    assert min(drawn) == 8
    assert max(drawn) in (127, 128)
    assert sum(math.log(k) for k in drawn) / 2000 == pytest.approx(math.log(32), rel=0.02)
    quarters = collections.Counter(int(4 * math.log(k / 8) / math.log(16.001)) for k in drawn)
    assert all(400 < quarters[quarter] < 600 for quarter in range(4))
    again = [prox.at(Moment(0.7, 5, step)).k for step in range(2000)]
    assert drawn == again
    assert drawn != [prox.at(Moment(0.0, 6, step)).k for step in range(2000)]
    assert prox.at(Moment(0.0, 5, 3)).sampled == (8, 128)
    assert TopK(4).at(Moment(0.0, 5, 3)) == TopK(4)
    assert TopK(4, sampled=[6, 6]).at(Moment(0.0, 5, 3)).k == 6


@pytest.mark.parametrize("wrong", [[8], [8, 16, 32], "8", 8, [16, 8], [0, 8], [8, 2.5]])
def test_a_wrong_range_is_told_by_its_key(wrong: object) -> None:
    with pytest.raises(InputError, match=r"prox\.sampled"):
        TopK(4, sampled=wrong)  # type: ignore[arg-type]


def test_counts_may_not_exceed_the_number_of_atoms() -> None:
    with pytest.raises(InputError, match=r"upper end of prox\.sampled=65 is more"):
        TopK(4, sampled=[2, 65]).check(64)
    with pytest.raises(InputError, match=r"prox\.k=65 is more"):
        BatchTopK(65).check(64)
    with pytest.raises(InputError, match=r"prox\.target_l0=65 is more"):
        Jump(1.0, target_l0=65).check(64)
    for prox in (TopK(4, sampled=[2, 64]), BatchTopK(64), Jump(1.0, target_l0=64), Jump(1.0)):
        prox.check(64)


def test_the_hard_threshold_is_the_proximal_operator_of_counting() -> None:
    """argmin_a 1/2 (a - v)^2 + price [a > 0], a >= 0, by comparing both candidates."""
    v = torch.linspace(-2, 2, 401)[:, None]
    for price in (0.02, 0.5):
        keeping = 0.5 * torch.zeros_like(v) + price
        dropping = 0.5 * v.square()
        best = torch.where((v > 0) & (keeping < dropping), v, 0.0)
        assert torch.equal(Jump(price)(v, math.sqrt(2 * price)).values, best)


def test_the_slope_of_the_window_is_the_derivative_of_the_mean_count() -> None:
    """For many entries spread over the window, the pseudo-gradient is the true one of the mean."""
    v = torch.linspace(0, 1, 100_001, dtype=torch.float64)[:, None]
    theta = torch.tensor([0.4], dtype=torch.float64, requires_grad=True)
    prox = Jump(1.0, bandwidth=0.2)
    (slope,) = torch.autograd.grad(prox.count(v, theta).mean(), theta)
    assert float(slope) == pytest.approx(-1.0, rel=1e-3)  # density 1: d/dtheta P(v > theta)
    (slope,) = torch.autograd.grad(prox(v, theta).values.mean(), theta)
    assert float(slope) == pytest.approx(-0.4, rel=1e-3)  # d/dtheta E[v; v > theta] = -theta


def test_values_that_pass_carry_their_gradient_and_others_none() -> None:
    v = torch.tensor([[0.5, 0.2, -1.0]], requires_grad=True)
    codes = Jump(1.0)(v, torch.tensor([0.3, 0.3, 0.0]))
    codes.values.sum().backward()  # type: ignore[no-untyped-call]
    assert v.grad is not None
    assert v.grad.tolist() == [[1, 0, 0]]


def test_the_price_is_of_every_positive_code_or_of_missing_the_target() -> None:
    codes = Codes.from_dense(torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.5, 0.0]]))
    assert Jump(0.5).value(codes).tolist() == [1.0, 0.5]
    assert Jump(0.5, target_l0=3).value(codes).tolist() == [0, 0]
    count = torch.tensor([2.0, 1.0])
    assert Jump(0.5).price(count).tolist() == [0, 0]
    assert Jump(0.5, target_l0=3).price(count).tolist() == [0.125, 0.125]
    assert Jump(0.5, target_l0=1.5).price(count).tolist() == [0, 0]
    assert BatchTopK(2).value(codes).tolist() == [0, 0]


@pytest.mark.parametrize("name", ["lambda_", "bandwidth", "target_l0"])
@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), "a"])
def test_a_wrong_number_of_jump_is_told_by_its_key(name: str, wrong: object) -> None:
    with pytest.raises(InputError, match=rf"prox\.{name}"):
        Jump(**{"lambda_": 1.0, name: wrong})  # type: ignore[arg-type]
