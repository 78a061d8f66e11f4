"""Dense and k-sparse codes answer alike."""

import pytest
import torch

from dictlearn.codes import Codes


@pytest.fixture
def pair() -> tuple[Codes, Codes]:
    """The same codes, k-sparse (with a kept zero) and dense."""
    indices = torch.tensor([[0, 3], [3, 1], [2, 4]])
    values = torch.tensor([[1.5, 0.5], [2.0, 0.0], [0.25, 4.0]])
    dense = torch.tensor([[1.5, 0, 0, 0.5, 0, 0], [0, 0, 0, 2.0, 0, 0], [0, 0, 0.25, 0, 4.0, 0]])
    return Codes(values, indices, 6), Codes.from_dense(dense)


def test_sparse_codes_equal_dense_ones_in_every_method(pair: tuple[Codes, Codes]) -> None:
    sparse, dense = pair
    assert torch.equal(sparse.dense(), dense.values)
    assert torch.equal(dense.dense(), dense.values)
    assert sparse.n_atoms == dense.n_atoms == 6
    assert sparse.l0().tolist() == dense.l0().tolist() == [2, 1, 2]
    assert sparse.l1().tolist() == dense.l1().tolist() == [2.0, 2.0, 4.25]
    assert sparse.fired().tolist() == dense.fired().tolist() == [1, 0, 1, 2, 1, 0]
    energies = [codes.sum_over_rows(codes.values.square()) for codes in pair]
    assert torch.equal(*energies)
    assert energies[0].tolist() == [2.25, 0, 0.0625, 4.25, 16.0, 0]


def test_a_kept_zero_has_not_fired() -> None:
    codes = Codes(torch.tensor([[0.0, 1.0]]), torch.tensor([[2, 0]]), 3)
    assert codes.fired().tolist() == [1, 0, 0]
    assert codes.l0().tolist() == [1]


def test_the_gradient_of_dense_codes_arrives_at_the_kept_values_until_detached(
    pair: tuple[Codes, Codes],
) -> None:
    values = pair[0].values.clone().requires_grad_()
    codes = Codes(values, pair[0].indices, 6)
    weight = torch.arange(18.0).view(3, 6)
    (codes.dense() * weight).sum().backward()  # type: ignore[no-untyped-call]
    assert values.grad is not None
    assert values.grad.tolist() == [[0, 3], [9, 7], [14, 16]]
    assert not codes.detach().values.requires_grad
    assert codes.detach().indices is codes.indices
