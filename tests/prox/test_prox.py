"""Every proximal operator is the minimiser that it claims to be."""

import itertools

import pytest
import torch
from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.errors import InputError
from dictlearn.prox import Prox, Relu, Soft, TopK

THRESHOLDS = [0.0, 0.3, torch.tensor([0.0, 0.1, 0.2, 0.5, 1.0])]


def value(a: Tensor, v: Tensor, threshold: Tensor | float) -> Tensor:
    return 0.5 * (a - v).square().sum(-1) + (threshold * a).sum(-1)


def rows() -> Tensor:
    torch.manual_seed(0)
    return torch.cat(
        [torch.randn(6, 5, dtype=torch.float64), -torch.rand(1, 5, dtype=torch.float64)]
    )


def searched(v: Tensor, threshold: Tensor | float, keep: int) -> Tensor:
    """Minimise by projected gradient on every support of `keep` atoms, and take the best."""
    best = torch.full((len(v),), torch.inf, dtype=v.dtype)
    codes = torch.zeros_like(v)
    for support in itertools.combinations(range(v.shape[1]), keep):
        mask = torch.zeros(v.shape[1], dtype=v.dtype)
        mask[list(support)] = 1
        a = torch.zeros_like(v)
        for _ in range(100):
            a = ((a - 0.5 * (a - v + threshold)) * mask).clamp_min(0)
        better = value(a, v, threshold) < best
        best = torch.where(better, value(a, v, threshold), best)
        codes[better] = a[better]
    return codes


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize(
    ("prox", "keep"), [(Soft(0.7), 5), (Relu(), 5), (TopK(2), 2), (TopK(5), 5)]
)
def test_the_prox_is_the_minimiser_found_by_search(
    prox: Prox, keep: int, threshold: Tensor | float
) -> None:
    v = rows()
    codes = prox(v, threshold)
    torch.testing.assert_close(codes.dense(), searched(v, threshold, keep))


def test_topk_with_fewer_positive_entries_keeps_zeros_at_distinct_atoms() -> None:
    codes = TopK(3)(torch.tensor([[-1.0, 2.0, -3.0, -0.5], [-1.0, -1.0, -1.0, -1.0]]), 0.0)
    assert codes.dense().tolist() == [[0, 2, 0, 0], [0, 0, 0, 0]]
    assert codes.indices is not None
    assert all(len(set(row)) == 3 for row in codes.indices.tolist())


def test_topk_keeps_exactly_k_of_equal_entries() -> None:
    codes = TopK(2)(torch.ones(3, 7), 0.0)
    assert codes.dense().sum(1).tolist() == [2, 2, 2]


def test_the_penalty_is_the_price_of_the_codes() -> None:
    codes = Codes.from_dense(torch.tensor([[1.0, 2.0], [0.0, 0.5]]))
    assert Soft(2.0).value(codes).tolist() == [6.0, 1.0]
    assert Relu().value(codes).tolist() == TopK(1).value(codes).tolist() == [0, 0]
    assert (Soft(2.0).lambda_, Relu().lambda_, TopK(1).lambda_) == (2.0, 0.0, 0.0)
    assert (Soft(2.0).convex, Relu().convex, TopK(1).convex) == (True, True, False)


@pytest.mark.parametrize("wrong", [0, -1.0, float("nan"), float("inf"), "a"])
def test_a_wrong_price_is_told_by_its_key(wrong: float) -> None:
    with pytest.raises(InputError, match=r"prox\.lambda_"):
        Soft(wrong)


@pytest.mark.parametrize("wrong", [0, -3, 1.5, "many"])
def test_a_wrong_k_is_told_by_its_key(wrong: int) -> None:
    with pytest.raises(InputError, match=r"prox\.k"):
        TopK(wrong)


def test_k_may_not_exceed_the_number_of_atoms() -> None:
    TopK(8).check(8)
    with pytest.raises(InputError, match=r"prox\.k=9 is more than dictionary\.n_atoms=8"):
        TopK(9).check(8)
