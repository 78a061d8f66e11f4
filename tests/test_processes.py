"""What processes know together: exact, in the order of one batch, and nothing changes for one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dictlearn import processes

WORLD = 3


def rows(rank: int) -> Tensor:
    """Rows of a process; many entries occur in several of them."""
    draw = torch.Generator().manual_seed(rank)
    return torch.randint(-3, 40, (7, 11), generator=draw) / 8


def everything(rank: int) -> dict[str, Tensor]:
    """What the functions return to one process."""
    own = rows(rank)
    return {
        "rank": torch.tensor([processes.rank(), processes.world_size()]),
        "total": processes.total(own),
        "mean": processes.mean(own),
        "smallest": processes.smallest(own),
        "gathered": processes.gathered(own),
        "some": processes.rows_of_all(own, torch.tensor([20, 0, 13, 7])),
        "kth": torch.stack(processes.kth_largest(own, 9)[:1]),
        "among": processes.among_largest(own, 9),
        "uneven": processes.among_largest(own, 9 * rank),
        "all": processes.among_largest(own, 1000),
        "union": torch.tensor(sorted(processes.union(frozenset({rank, 7})))),
    }


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    meet = f"file://{folder}/meet"
    torch.distributed.init_process_group("gloo", meet, rank=rank, world_size=WORLD)
    torch.save(everything(rank), Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.start_processes(  # type: ignore[attr-defined, no-untyped-call]
        _process, (str(folder),), nprocs=WORLD, start_method="fork"
    )
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


def whole() -> Tensor:
    return torch.cat([rows(rank) for rank in range(WORLD)])


def test_every_process_is_told_the_same(found: list[dict[str, Tensor]]) -> None:
    parts = torch.stack([rows(rank) for rank in range(WORLD)])
    for rank, one in enumerate(found):
        assert one["rank"].tolist() == [rank, WORLD]
        torch.testing.assert_close(one["total"], parts.sum(0), rtol=0, atol=0)
        torch.testing.assert_close(one["mean"], parts.mean(0))
        assert torch.equal(one["smallest"], parts.amin(0))
        assert torch.equal(one["gathered"], whole())
        assert one["union"].tolist() == [0, 1, 2, 7]
        assert torch.equal(one["some"], whole()[[20, 0, 13, 7]])
        assert float(one["kth"]) == float(whole().flatten().sort(descending=True).values[26])


@pytest.mark.parametrize("name", ["among", "uneven"])
def test_the_largest_of_all_are_chosen_as_many_as_wanted_and_of_equals_the_first(
    name: str, found: list[dict[str, Tensor]]
) -> None:
    chosen = torch.cat([one[name] for one in found]).flatten()
    order = whole().flatten().sort(descending=True, stable=True)
    expected = torch.zeros_like(chosen).index_fill(0, order.indices[:27], True)
    assert order.values[26] == order.values[27]  # not all of the smallest can be
    assert torch.equal(chosen, expected)


def test_what_is_not_positive_is_never_chosen(found: list[dict[str, Tensor]]) -> None:
    assert torch.equal(torch.cat([one["all"] for one in found]), whole() > 0)


def test_one_process_gets_its_own_back() -> None:
    own = rows(0)
    same: list[Callable[[Tensor], Tensor]] = [
        processes.total,
        processes.mean,
        processes.smallest,
        processes.gathered,
    ]
    assert all(one(own) is own for one in same)
    assert processes.union(frozenset({3})) == {3}
    assert (processes.rank(), processes.world_size()) == (0, 1)
    assert torch.equal(processes.rows_of_all(own, torch.tensor([6, 2])), own[[6, 2]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("k", [1, 3, 500, 4000])
def test_the_kth_largest_is_exact_over_all_sizes_of_numbers(dtype: torch.dtype, k: int) -> None:
    draw = torch.Generator().manual_seed(k)
    values = torch.randn(5000, generator=draw, dtype=torch.float64)
    values = (values * (20 * torch.randn(5000, generator=draw)).exp()).to(dtype)
    positive = values[values > 0].double().sort(descending=True).values
    expected = positive[k - 1] if k <= len(positive) else torch.tensor(0.0)
    kth = processes.kth_largest(values, k)
    assert float(kth.value) == float(expected)
    assert kth.value.dtype == dtype
    assert int(processes.among_largest(values, k).sum()) == min(k, len(positive))


def test_there_may_be_nothing_to_choose_from() -> None:
    assert not processes.among_largest(torch.zeros(4, 2), 3).any()
    assert float(processes.kth_largest(torch.empty(0), 1).value) == 0
