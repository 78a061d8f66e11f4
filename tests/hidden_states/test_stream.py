from __future__ import annotations

import threading
import weakref
from collections import Counter

import numpy as np
import pytest
import torch

from dictlearn.errors import InputError
from dictlearn.hidden_states.batch import HiddenStates
from dictlearn.hidden_states.extraction import Extractor
from dictlearn.hidden_states.lanes import LaneBlock, LanePlan
from dictlearn.hidden_states.stream import LaneStream, Share, ShuffledBlock, lane_block_bytes
from dictlearn.text import TokenStore, pack
from dictlearn.transformer import FrozenTransformer
from tests.hidden_states.conftest import Bench
from tests.hidden_states.test_extraction import NotFinite

LANES = 4


def run(
    bench: Bench,
    steps: range,
    share: Share | None = None,
    prefetch: bool = False,
    seed: int = 0,
) -> list[HiddenStates]:
    share = Share.of(0, 1, LANES, 40) if share is None else share
    known = bench.plan
    plan = LanePlan(known.rows, known.documents, LANES, known.sequences_per_block, seed)
    return list(LaneStream(plan, bench.extractor, share, steps.start, steps.stop, prefetch))


def equal(left: HiddenStates, right: HiddenStates) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_tokens_of_an_epoch_are_seen_once_in_every_layer(bench: Bench) -> None:
    seen: Counter[tuple[int, int, int]] = Counter()
    for lane in range(LANES):
        n = bench.plan.epoch_rows(lane)
        share = Share(range(lane, lane + 1), 64)
        rows = HiddenStates.concatenate(run(bench, range(-(-n // 64)), share))
        origin = torch.stack([rows.document, rows.position, rows.layer], 1)[:n]
        seen.update(tuple(row) for row in origin.tolist())
    assert set(seen.values()) == {1}
    assert len(seen) == 2 * len(bench.store.tokens)


def test_the_epoch_after_brings_every_token_again(bench: Bench) -> None:
    n = bench.plan.epoch_rows(0)
    lane = Share(range(1), 8)
    steps = range(n // 8 - 1, n // 8 + 2)
    batches = run(bench, steps, lane)
    assert [len(batch.layer) for batch in batches] == [8, 8, 8]


def test_neighbours_in_a_batch_are_strangers(
    transformer: FrozenTransformer, store: TokenStore, bench: Bench
) -> None:
    blocks = pack(store, np.ones(len(store.document_ids), dtype=bool), 8)
    frame = bench.extractor.frame._replace(block_length=8, sequences=32)
    extractor = Extractor(transformer, store, blocks, (0, 1, 2, 3), frame)
    rows = extractor.n_tokens(np.arange(len(blocks.start))) * 4
    plan = LanePlan(rows, blocks.document, 2, 64, 0)
    stream = LaneStream(plan, extractor, Share(range(1), 64), 0, 48)
    mixed = HiddenStates.concatenate(list(stream))
    ordered = extractor.rows(np.arange(len(blocks.start)))

    def correlation(values: torch.Tensor) -> float:
        return float(torch.corrcoef(torch.stack([values[1:], values[:-1]]).double())[0, 1])

    assert correlation(ordered.layer) > 0.9
    assert correlation(ordered.document) > 0.9
    assert abs(correlation(mixed.layer)) < 0.06
    assert abs(correlation(mixed.document)) < 0.06


@pytest.mark.parametrize("world", [2, 4])
def test_processes_have_documents_of_their_own(bench: Bench, world: int) -> None:
    assert bench.plan.n_cut() == 0
    seen: list[set[int]] = []
    for rank in range(world):
        batches = run(bench, range(80), Share.of(rank, world, LANES, 40 // world))
        seen.append({d for batch in batches for d in batch.document.tolist()})
    assert all(seen)
    assert sum(map(len, seen)) == len(set().union(*seen)) == len(bench.store.document_ids)


@pytest.mark.parametrize("world", [2, 4])
def test_processes_together_see_what_one_process_sees(bench: Bench, world: int) -> None:
    whole = run(bench, range(8))
    ranks = [run(bench, range(8), Share.of(r, world, LANES, 40 // world)) for r in range(world)]
    for batch, *parts in zip(whole, *ranks, strict=True):
        assert equal(HiddenStates.concatenate(parts), batch)


@pytest.fixture(scope="module")
def whole(bench: Bench) -> list[HiddenStates]:
    return run(bench, range(95))


@pytest.mark.parametrize("step", [1, 7, 29, 90])
def test_a_start_at_any_step_goes_on_as_a_run_from_the_beginning(
    bench: Bench, whole: list[HiddenStates], step: int
) -> None:
    later = run(bench, range(step, min(step + 5, 95)))
    assert all(equal(a, b) for a, b in zip(whole[step:], later, strict=False))
    assert bench.plan.rows.sum() < 95 * 40  # the text was gone round


def test_a_start_in_the_middle_computes_one_lane_block_per_lane(bench: Bench) -> None:
    made: list[LaneBlock] = []

    class Counting(LaneStream):
        def make(self, place: LaneBlock) -> ShuffledBlock:
            made.append(place)
            return super().make(place)

    next(iter(Counting(bench.plan, bench.extractor, Share(range(LANES), 1), 777, 778)))
    assert [place.lane for place in made] == list(range(LANES))


def test_the_seed_fixes_the_batches(bench: Bench) -> None:
    first, again, other = (run(bench, range(4), seed=seed) for seed in (0, 0, 1))
    assert all(equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(equal(a, b) for a, b in zip(first, other, strict=True))


def test_batches_are_the_same_with_and_without_a_background_thread(
    bench: Bench, whole: list[HiddenStates]
) -> None:
    ahead = run(bench, range(60), prefetch=True)
    assert len(ahead) == 60
    assert all(equal(a, b) for a, b in zip(whole, ahead, strict=False))


def background_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("hidden_states")]


def test_the_background_thread_ends_with_the_stream(bench: Bench) -> None:
    stream = LaneStream(bench.plan, bench.extractor, Share(range(LANES), 5), 0, 50, True)
    list(stream)
    assert not background_threads()
    iterator = iter(stream)
    next(iterator)
    assert len(background_threads()) == 1
    iterator.close()
    assert not background_threads()


def test_an_error_in_the_background_reaches_the_reader(bench: Bench) -> None:
    """C6 the thread that prepares the batches fails: the run gets its sentence, and no thread is
    left.
    """
    spoilt = Extractor(
        NotFinite(dtype="float32"),
        bench.store,
        bench.extractor.blocks,
        (0, 3),
        bench.extractor.frame,
    )
    with pytest.raises(InputError, match="is not finite"):
        list(LaneStream(bench.plan, spoilt, Share(range(LANES), 5), 0, 50, True))
    assert not background_threads()


@pytest.mark.parametrize("prefetch", [False, True])
def test_lane_blocks_in_memory_stay_within_what_is_announced(bench: Bench, prefetch: bool) -> None:
    """C8 blocks of hidden states fill the memory: never more than is announced at the start."""
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most, most_blocks = 0, 0

    class Watched(LaneStream):
        def make(self, place: LaneBlock) -> ShuffledBlock:
            nonlocal most, most_blocks
            block = super().make(place)
            alive.update([*block.states, block.order])
            most = max(most, sum(tensor.nbytes for tensor in list(alive)))
            most_blocks = max(most_blocks, len(alive) // (len(block.states) + 1))
            return block

    list(Watched(bench.plan, bench.extractor, Share(range(LANES), 16), 0, 60, prefetch))
    blocks = LANES * (2 if prefetch else 1)
    assert LANES <= most_blocks <= blocks
    size = lane_block_bytes(bench.extractor, bench.plan.sequences_per_block)
    assert 0.5 * LANES * size < most <= blocks * size
