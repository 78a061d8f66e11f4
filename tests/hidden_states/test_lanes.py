from __future__ import annotations

import numpy as np
import pytest
import torch

from dictlearn.errors import InputError
from dictlearn.hidden_states.lanes import LanePlan
from dictlearn.hidden_states.stream import Share


def make_plan(n: int = 37, lanes: int = 4, seed: int = 0) -> LanePlan:
    draw = np.random.default_rng(1)
    rows, documents = draw.integers(1, 9, n), np.sort(draw.integers(0, 30, n))
    return LanePlan(rows, documents, lanes, 3, seed)


@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_all_lanes_together_have_every_token_block_once_an_epoch(epoch: int) -> None:
    plan = make_plan()
    seen: list[int] = []
    for lane in range(4):
        row = 0
        while (block := plan.block(lane, row)).epoch <= epoch:
            seen += block.tokens.tolist() if block.epoch == epoch else []
            row = block.last
    assert sorted(seen) == list(range(37))


def test_lane_blocks_follow_each_other_without_a_gap_and_hold_their_tokens_rows() -> None:
    plan, row = make_plan(), 0
    for _ in range(40):
        block = plan.block(2, row)
        assert block.first == row
        assert block.last - block.first == plan.rows[block.tokens].sum()
        assert len(block.tokens) <= 3
        row = block.last


def test_any_row_is_found_by_a_new_plan_as_by_one_that_read_from_the_start() -> None:
    old = make_plan()
    blocks = [old.block(1, 0)]
    for _ in range(60):
        blocks.append(old.block(1, blocks[-1].last))
    for block in blocks[::-7]:
        for row in (block.first, block.last - 1):
            new = make_plan().block(1, row)
            assert new[:5] == block[:5]
            assert np.array_equal(new.tokens, block.tokens)


def test_epochs_lanes_and_seeds_have_orders_of_their_own() -> None:
    plan, long = make_plan(), 100 * make_plan().epoch_rows(0)
    orders_of_blocks = {
        tuple(tokens.tolist())
        for tokens in (
            *(plan.block(0, row).tokens for row in (0, plan.epoch_rows(0), long)),
            make_plan(seed=1).block(0, 0).tokens,
        )
    }
    assert len(orders_of_blocks) == 4
    assert not np.array_equal(plan.mixed(), make_plan(seed=1).mixed())
    assert np.array_equal(np.sort(plan.mixed()), np.arange(37))
    first, other = plan.block(0, 0), plan.block(1, 0)
    wide = first._replace(first=0, last=100)
    orders = [plan.permutation(wide), plan.permutation(wide._replace(lane=other.lane))]
    orders += [plan.permutation(wide._replace(number=1)), plan.permutation(wide._replace(epoch=1))]
    assert all(torch.equal(order.sort().values, torch.arange(100)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 4


def test_fewer_token_blocks_than_lanes_is_said() -> None:
    with pytest.raises(InputError, match=r"hidden_states\.lanes=4 needs at least 4 .* there are 3"):
        LanePlan(np.array([5, 5, 5]), np.arange(3), 4, 1, 0)


def test_processes_share_all_lanes_and_all_rows() -> None:
    shares = [Share.of(rank, 2, 8, 32) for rank in range(2)]
    assert sorted(lane for share in shares for lane in share.lanes) == list(range(8))
    assert {share.rows for share in shares} == {8}
    assert Share.of(0, 1, 8, 64).rows == 8


def test_lanes_that_the_processes_cannot_share_are_named() -> None:
    with pytest.raises(InputError, match=r"3 processes .* hidden_states\.lanes=8"):
        Share.of(0, 3, 8, 32)


def test_a_batch_that_the_lanes_cannot_share_is_named_with_one_that_they_can() -> None:
    with pytest.raises(InputError, match=r"batch_size=30 .*lanes=8.* hidden_states\.batch_size=28"):
        Share.of(0, 2, 8, 30)
    assert Share.of(0, 2, 8, 28).rows == 7
