from __future__ import annotations

import numpy as np
import pytest
import torch

from dictlearn.errors import InputError
from dictlearn.hidden_states.batch import HiddenStates
from dictlearn.hidden_states.validation import ValidationBatches, choose_blocks
from tests.hidden_states.conftest import Bench

ROWS = np.random.default_rng(3).integers(1, 33, 500)


def test_chosen_blocks_are_in_order_spread_over_the_text_and_not_too_many() -> None:
    numbers = choose_blocks(ROWS, 1000, lanes=8, world=2, seed=0)
    assert np.all(np.diff(numbers) > 0)
    assert 800 < ROWS[numbers].sum() <= 1000
    assert numbers.min() < 100
    assert numbers.max() > 400
    assert np.array_equal(numbers, choose_blocks(ROWS, 1000, lanes=8, world=4, seed=0))
    assert not np.array_equal(numbers, choose_blocks(ROWS, 1000, lanes=8, world=2, seed=1))


def test_all_blocks_are_chosen_when_they_may() -> None:
    assert len(choose_blocks(ROWS, 10**9, lanes=4, world=1, seed=0)) == 500
    assert len(choose_blocks(ROWS[:3], 10**9, lanes=4, world=1, seed=0)) == 3
    assert not len(choose_blocks(ROWS, 0, lanes=4, world=1, seed=0))
    assert not len(choose_blocks(ROWS[:0], 100, lanes=4, world=1, seed=0))


def test_too_little_for_every_process_is_said() -> None:
    with pytest.raises(InputError, match=r"validation_vectors=100 of the 3 .* 4 processes") as told:
        choose_blocks(ROWS[:3], 100, lanes=4, world=4, seed=0)
    # Vectors of a cache and of a file have no text whose share could be another.
    assert "text." not in str(told.value)
    assert not len(choose_blocks(ROWS[:3], 0, lanes=4, world=4, seed=0))  # as it advises


@pytest.mark.parametrize(("world", "batch_size"), [(1, 50), (2, 50), (2, 1), (1, 10**6)])
def test_processes_share_whole_blocks_in_equally_many_batches(
    bench: Bench, world: int, batch_size: int
) -> None:
    numbers = np.arange(0, 36, 3)
    ranks = [
        ValidationBatches(bench.extractor, numbers, rank, world, batch_size)
        for rank in range(world)
    ]
    batches = [list(rank) for rank in ranks]
    assert {len(part) for part in batches} == {len(rank) for rank in ranks}
    for rank in range(world):
        size, done = ranks[rank].blocks_per_batch, 0
        for batch in batches[rank]:
            part = numbers[rank::world][done : done + size]
            expected = bench.extractor.rows(part)
            for got, wanted in zip(batch[1:], expected[1:], strict=True):
                assert torch.equal(got, wanted)
            torch.testing.assert_close(batch.vectors, expected.vectors)
            done += size
        assert done >= len(numbers) // world
    if batch_size == 50:
        sizes = [len(batch.layer) for part in batches for batch in part]
        assert 25 < np.mean(sizes) < 75
    assert isinstance(batches[0][0], HiddenStates)


def test_some_blocks_are_drawn_from_all_of_them_for_so_many_rows(bench: Bench) -> None:
    batches = ValidationBatches(bench.extractor, np.arange(36), 0, 1, 50)
    rows = sum(len(batch.layer) for batch in batches)
    some = batches.some(rows // 3, torch.Generator().manual_seed(0))
    assert np.all(np.diff(some.numbers) > 0)
    assert some.numbers.min() < 12
    assert some.numbers.max() > 24
    assert rows // 3 <= sum(len(batch.layer) for batch in some) < rows // 2
    assert len(batches.numbers) == 36
    all_of_them = batches.some(10 * rows, torch.Generator().manual_seed(0))
    assert np.array_equal(all_of_them.numbers, np.arange(36))
