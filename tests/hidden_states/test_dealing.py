from __future__ import annotations

import time

import numpy as np
import pytest
from numpy.typing import NDArray

from dictlearn.hidden_states.dealing import UNEVEN, dealt
from dictlearn.hidden_states.lanes import LanePlan

Integers = NDArray[np.int64]


def blocks_of(lengths: Integers, length: int = 64) -> tuple[Integers, Integers]:
    """Return rows and documents of the token blocks of documents of these lengths."""
    n_blocks = -(-lengths // length)
    documents = np.repeat(np.arange(len(lengths)), n_blocks)
    rows = np.full(len(documents), length)
    rows[np.cumsum(n_blocks) - 1] = lengths - (n_blocks - 1) * length
    return rows, documents


def uneven(rows: Integers, lane: Integers) -> float:
    loads = np.bincount(lane, weights=rows)
    return float(np.ptp(loads) / loads.mean())


def n_lanes_of(documents: Integers, lane: Integers) -> Integers:
    pairs = np.unique(np.stack([documents, lane]), axis=1)
    return np.bincount(pairs[0])


@pytest.mark.parametrize("lanes", [2, 8, 64])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_lane_has_documents_of_its_own_and_as_much_text(lanes: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    lengths = np.exp(draw.normal(6.0, 1.0, 200 * lanes)).astype(np.int64) + 1
    rows, documents = blocks_of(lengths)
    lane = dealt(rows, documents, lanes, seed)
    assert set(n_lanes_of(documents, lane)) == {1}
    assert set(lane) == set(range(lanes))
    assert uneven(rows, lane) <= UNEVEN


def test_documents_that_are_too_long_or_too_few_are_cut_and_no_others() -> None:
    giant = np.array([100, 100_000, *[200] * 100])
    rows, documents = blocks_of(giant)
    lane = dealt(rows, documents, 8, 0)
    in_lanes = n_lanes_of(documents, lane)
    assert in_lanes[1] > 4
    assert set(np.delete(in_lanes, 1)) == {1}
    assert uneven(rows, lane) <= UNEVEN
    for lengths in ([50_000], [20_000] * 3, [20_000] * 9):
        rows, documents = blocks_of(np.array(lengths))
        lane = dealt(rows, documents, 8, 0)
        assert uneven(rows, lane) <= UNEVEN, lengths


def test_pieces_of_a_document_are_of_blocks_that_follow_each_other() -> None:
    rows, documents = blocks_of(np.array([50_000]))
    lane = dealt(rows, documents, 8, 0)
    changes = int((lane[1:] != lane[:-1]).sum())
    assert 7 <= changes < 200


def test_as_many_blocks_as_lanes_are_one_each() -> None:
    lane = dealt(np.array([64, 1, 1, 7]), np.zeros(4, dtype=np.int64), 4, 0)
    assert sorted(lane) == [0, 1, 2, 3]


def test_the_seed_decides_who_reads_what_and_no_lane_has_the_short_documents() -> None:
    lengths = np.random.default_rng(0).integers(1, 400, 20_000)
    rows, documents = blocks_of(lengths)
    lane = dealt(rows, documents, 4, 0)
    assert np.array_equal(lane, dealt(rows, documents, 4, 0))
    assert not np.array_equal(lane, dealt(rows, documents, 4, 1))
    of_document = lane[np.concatenate([[True], documents[1:] != documents[:-1]])]
    means = [lengths[of_document == number].mean() for number in range(4)]
    assert np.ptp(means) < 0.1 * np.mean(means)
    assert uneven(rows, lane) <= UNEVEN


def test_the_plan_says_how_many_documents_are_cut() -> None:
    rows, documents = blocks_of(np.array([100_000, *[200] * 100]))
    assert LanePlan(rows, documents, 8, 32, 0).n_cut() == 1
    rows, documents = blocks_of(np.array([200] * 400))
    assert LanePlan(rows, documents, 8, 32, 0).n_cut() == 0


def test_ten_million_blocks_are_dealt_in_seconds() -> None:
    lengths = np.random.default_rng(0).integers(1, 1280, 1_000_000)
    rows, documents = blocks_of(lengths)
    assert len(rows) > 10_000_000
    began = time.process_time()
    lane = dealt(rows, documents, 64, 0)
    assert time.process_time() - began < 20
    assert uneven(rows, lane) <= UNEVEN
