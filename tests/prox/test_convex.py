"""Convex penalties: their value, their step, their prices, and how mistakes are told."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.errors import InputError
from dictlearn.prox import ElasticNet, Moment, Priced, Relu, Reweighted, SignedSoft, Soft, Weighted

WEIGHTS = [0.5, 1.0, 2.0, 1.5, 3.0]
ALL: list[Priced] = [
    Soft(0.3),
    SignedSoft(0.3),
    ElasticNet(0.3, 0.7),
    Weighted(0.3, WEIGHTS),
    Reweighted(0.3),
    Relu(),
]


def rows() -> Tensor:
    return torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("prox", ALL)
def test_the_step_is_the_minimiser_on_a_fine_grid(prox: Priced) -> None:
    v, eta = rows(), torch.tensor(0.6, dtype=torch.float64)
    penalty = prox.penalty(v)
    step = penalty.step(v, eta)
    grid = torch.linspace(-4 if penalty.signed else 0, 4, 8001, dtype=torch.float64)
    price = penalty.price.expand(7, 5)[:, :, None]
    value = 0.5 * (grid - v[:, :, None]).square()
    value = value + eta * (price * grid.abs() + 0.5 * penalty.ridge * grid.square())
    torch.testing.assert_close(step, grid[value.argmin(2)], atol=1e-3, rtol=0)
    assert (step < 0).any() == penalty.signed


@pytest.mark.parametrize("prox", ALL)
def test_before_an_encoder_it_is_a_threshold_of_its_sign(prox: Priced) -> None:
    v = rows()
    by = torch.tensor([0.0, 0.1, 0.2, 0.5, 1.0], dtype=torch.float64)
    for threshold in (0.4, by):
        codes = prox(v, threshold)
        assert codes.indices is None
        expected = torch.relu(v - threshold)
        if isinstance(prox, SignedSoft):
            expected = v.sign() * torch.relu(v.abs() - threshold)
        torch.testing.assert_close(codes.values, expected)
    points = v.clone().requires_grad_()
    prox(points, 0.1).values.sum().backward()  # type: ignore[no-untyped-call]
    assert points.grad is not None
    assert torch.equal(points.grad != 0, prox(v, 0.1).values != 0)


@pytest.mark.parametrize(
    ("prox", "expected"),
    [
        (Soft(2.0), [6.0, 1.0]),
        (SignedSoft(2.0), [6.0, 1.0]),
        (ElasticNet(2.0, 4.0), [6 + 2 * 5.0, 1 + 2 * 0.25]),
        (Weighted(2.0, [1.0, 3.0, 1.0]), [2 * (1 + 6), 2 * 1.5]),
        (Reweighted(2.0, 0.5), [np.log(3.0) + np.log(5.0), np.log(2.0)]),
        (Relu(), [0.0, 0.0]),
    ],
)
def test_the_value_is_the_formula_for_dense_and_sparse_codes(
    prox: Priced, expected: list[float]
) -> None:
    dense = Codes.from_dense(torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.5, 0.0]]))
    sparse = Codes(torch.tensor([[2.0, 1.0], [0.0, 0.5]]), torch.tensor([[1, 0], [2, 1]]), 3)
    assert prox.value(dense).tolist() == pytest.approx(expected)
    assert prox.value(sparse).tolist() == pytest.approx(expected)
    assert prox.convex


def test_negative_codes_cost_and_count_like_positive_ones() -> None:
    codes = Codes.from_dense(torch.tensor([[1.0, -2.0, 0.0], [0.0, -0.5, 0.0]]))
    assert SignedSoft(2.0).value(codes).tolist() == [6.0, 1.0]
    assert codes.l0().tolist() == [2, 1]
    assert codes.l1().tolist() == [3.0, 0.5]
    assert codes.fired().tolist() == [1, 2, 0]


@pytest.mark.parametrize("kind", [Soft, SignedSoft, ElasticNet, Reweighted])
def test_every_layer_may_have_its_price(kind: type) -> None:
    prox = kind([0.1, 0.2, 0.4])
    layered = prox.for_layers(torch.tensor([2, 0, 1, 1]))
    x = torch.zeros(4, 6)
    assert layered.penalty(x).price[:, 0].tolist() == pytest.approx([0.4, 0.1, 0.2, 0.2])
    assert layered.penalty(x.double()).price.dtype == torch.float64
    codes = Codes.from_dense(torch.full((4, 6), 1e-9))
    ratio = layered.value(codes) / kind(0.1).value(codes)
    assert ratio.tolist() == pytest.approx([4, 1, 2, 2])
    assert kind(0.1).for_layers(torch.tensor([0])) == kind(0.1)
    with pytest.raises(InputError, match=r"prox\.lambda_ has 3 prices.* number 4 is"):
        prox.for_layers(torch.tensor([3]))
    with pytest.raises(InputError, match=r"prox\.lambda_ has 3 prices"):
        prox.penalty(x)


@pytest.mark.parametrize("prox", ALL[:-1])
def test_a_steered_price_is_a_tensor_and_nothing_else_changes(prox: Priced) -> None:
    steered = prox.priced(torch.tensor(0.6))
    x = torch.zeros(4, 6, dtype=torch.float64)
    torch.testing.assert_close(steered.penalty(x).price, 2 * prox.penalty(x).price)
    assert steered.penalty(x)[1:] == prox.penalty(x)[1:]
    assert steered.at(Moment(0.5, 0, 1)) is steered
    assert steered.for_layers(torch.tensor([0, 1, 2, 3])) is steered


def test_the_wanted_l0_goes_along() -> None:
    assert Soft(0.1).target_l0 is None
    assert Soft(0.1, target_l0=20).priced(torch.tensor(0.2)).target_l0 == 20
    assert ElasticNet(0.1, 0.2, target_l0=20).target_l0 == 20
    with pytest.raises(InputError, match=r"prox\.target_l0=20 steers one price"):
        Soft([0.1, 0.2], target_l0=20)
    with pytest.raises(InputError, match=r"prox\.target_l0=0"):
        Soft(0.1, target_l0=0)


def test_reweighting_takes_the_tangent_of_the_log() -> None:
    prox = Reweighted(0.3, epsilon=0.5, rounds=4)
    values = torch.tensor([[0.0, 0.5, 2.0]], dtype=torch.float64, requires_grad=True)
    penalty = prox.reweighed(torch.zeros(1, 3, dtype=torch.float64), Codes.from_dense(values))
    (slope,) = torch.autograd.grad(prox.value(Codes.from_dense(values)).sum(), values)
    torch.testing.assert_close(penalty.price, slope)
    assert prox.rounds == 4
    assert Soft(0.3).rounds == 1


def test_weights_come_from_a_list_or_a_file(tmp_path: Path) -> None:
    np.save(tmp_path / "w.npy", np.array(WEIGHTS, np.float32))
    save_file({"w": torch.tensor(WEIGHTS)}, str(tmp_path / "w.safetensors"))
    x = torch.zeros(2, 3)
    expected = 0.3 * torch.tensor([WEIGHTS])
    for weights in (WEIGHTS, str(tmp_path / "w.npy"), tmp_path / "w.safetensors"):
        prox = Weighted(0.3, weights)
        torch.testing.assert_close(prox.penalty(x).price, expected)
        prox.check(5)
        with pytest.raises(InputError, match=r"prox\.weights has 5 .*dictionary\.n_atoms=6"):
            prox.check(6)


def test_a_file_of_weights_is_read_once(tmp_path: Path) -> None:
    np.save(tmp_path / "w.npy", np.array(WEIGHTS))
    prox = Weighted(0.3, str(tmp_path / "w.npy"), target_l0=2.0)
    (tmp_path / "w.npy").unlink()
    priced = prox.priced(torch.tensor(0.6))  # as at every step of a steered run
    torch.testing.assert_close(
        priced.penalty(torch.zeros(1, 5)).price, 0.6 * torch.tensor([WEIGHTS])
    )
    layers = Weighted([0.3, 0.6], prox.weights).for_layers(torch.tensor([1, 0]))
    torch.testing.assert_close(
        layers.penalty(torch.zeros(2, 5)).price[0], 0.6 * torch.tensor(WEIGHTS)
    )


@pytest.mark.parametrize("wrong", [[], [1.0, 0.0], [1.0, -2.0], [1.0, float("nan")], ["a"]])
def test_wrong_weights_are_told_by_their_key(wrong: list[float]) -> None:
    with pytest.raises(InputError, match=r"prox\.weights"):
        Weighted(0.1, wrong)


def test_a_wrong_file_of_weights_is_told(tmp_path: Path) -> None:
    (tmp_path / "w.txt").write_text("1")
    np.save(tmp_path / "square.npy", np.ones((2, 2)))
    save_file({"a": torch.ones(2), "b": torch.ones(2)}, str(tmp_path / "two.safetensors"))
    for name, told in (
        ("none.npy", "is not a file"),
        ("w.txt", r"\.npy or \.safetensors"),
        ("square.npy", "list of finite numbers"),
        ("two.safetensors", "2 tensors"),
    ):
        with pytest.raises(InputError, match=told):
            Weighted(0.1, tmp_path / name)


def test_wrong_numbers_are_told_by_their_key() -> None:
    for wrong in (0, -1.0, float("nan"), "a", [], [0.1, 0.0]):
        for kind in (Soft, SignedSoft, ElasticNet, Reweighted):
            with pytest.raises(InputError, match=r"prox\.lambda_"):
                kind(wrong)
    with pytest.raises(InputError, match=r"prox\.ridge"):
        ElasticNet(0.1, -1.0)
    with pytest.raises(InputError, match=r"prox\.epsilon=0"):
        Reweighted(0.1, 0)
    with pytest.raises(InputError, match=r"prox\.rounds"):
        Reweighted(0.1, 0.1, 0)
