"""Selections keep the largest entries: of every row, of the whole batch, above a threshold."""

import pytest
import torch
from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.kernels import top_indices
from dictlearn.kernels.batch import above, batch_top
from dictlearn.kernels.selection import sortable


@pytest.mark.parametrize(
    ("m", "k"), [(1536, 32), (1539, 7), (700, 32), (64, 64), (5, 1), (9000, 100)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_selection_finds_the_largest_entries(m: int, k: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    scores = torch.randn(33, m).to(dtype)
    scores[0] = 1.0
    indices = top_indices(scores, k)
    found = scores.gather(1, indices).sort(1, descending=True).values
    assert torch.equal(found, scores.topk(k, dim=1).values)
    assert all(len(set(row)) == k for row in indices.tolist())


@pytest.mark.parametrize(("m", "k"), [(1536, 40), (3072, 128), (9001, 7), (512, 3)])
def test_bfloat16_is_chosen_by_its_bits(m: int, k: int) -> None:
    torch.manual_seed(0)
    scores = torch.randn(20, m).bfloat16()
    scores[0] = scores[0].abs()
    positive = scores.clamp_min(0).float()
    found = positive.gather(1, top_indices(sortable(scores), k))
    assert torch.equal(found.sort(1, descending=True).values, positive.topk(k, dim=1).values)


def test_infinite_entries_are_largest() -> None:
    scores = torch.randn(3, 600)
    scores[:, 17], scores[:, 18] = torch.inf, -torch.inf
    assert bool((top_indices(scores, 4) == 17).any(1).all())
    assert not bool((top_indices(scores, 599) == 18).any())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("n", "m", "k"), [(40, 96, 5), (40, 97, 5), (1, 50, 3), (200, 64, 60)])
def test_batch_top_keeps_the_largest_positive_scores_of_all(
    n: int, m: int, k: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    # One loud row has most of the large scores, as rows in order of their layer would.
    scores = torch.randn(n, m)
    scores[0] += 5
    scores = scores.to(dtype)
    kept = dense(batch_top(scores, k), scores)
    wanted = scores.flatten().clamp_min(0).sort(descending=True).values[: n * k]
    assert torch.equal(kept.flatten().sort(descending=True).values[: n * k], wanted)
    assert int((kept > 0).sum()) == int((wanted > 0).sum())
    assert torch.equal(kept[kept > 0], scores[kept > 0])


@pytest.mark.parametrize("n", [1, 2, 37])
def test_batch_top_finds_what_its_sample_of_rows_did_not_show(n: int) -> None:
    torch.manual_seed(0)
    scores = torch.rand(300, 64)
    # All rows of the sample but the first are loud: the first guess of the floor is too high.
    scores[torch.linspace(0, 299, 128).round().long()] += 100 * torch.rand(128, 1)
    kept = dense(batch_top(scores, n), scores)
    assert torch.equal(kept.flatten().topk(300 * n).values, scores.flatten().topk(300 * n).values)
    assert int((kept > 0).sum()) == 300 * n


def test_batch_top_of_equal_scores_keeps_no_more_than_wanted() -> None:
    kept = dense(batch_top(torch.ones(20, 16), 3), torch.ones(20, 16))
    assert int(kept.sum()) == 60


@pytest.mark.parametrize("threshold", [0.5, -1.0, "per atom", 9.0])
def test_above_keeps_what_is_above_the_threshold_and_positive(threshold: float | str) -> None:
    torch.manual_seed(0)
    scores = torch.randn(30, 48)
    cut = torch.rand(48) if threshold == "per atom" else torch.tensor(float(threshold))
    kept = dense(above(scores, cut), scores)
    assert torch.equal(kept, torch.where((scores > cut) & (scores > 0), scores, 0.0))


def dense(chosen: tuple[Tensor, Tensor], scores: Tensor) -> Tensor:
    values, indices = chosen
    assert all(len(set(row)) == len(row) for row in indices.tolist())
    return Codes(values, indices, scores.shape[1]).dense()
