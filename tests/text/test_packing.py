import time
from pathlib import Path

import numpy as np
import pytest

from dictlearn.errors import InputError
from dictlearn.text import Blocks, TokenStore, pack


def store_of(lengths: list[int]) -> TokenStore:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = np.arange(offsets[-1], dtype=np.int32)
    hashes = np.arange(len(lengths), dtype=np.uint64)
    ids = [str(n) for n in range(len(lengths))]
    return TokenStore(tokens, offsets, ids, hashes, {"source": "counted"}, Path())


def covered(blocks: Blocks) -> list[int]:
    pairs = zip(blocks.start, blocks.length, strict=True)
    return [index for start, length in pairs for index in range(start, start + length)]


def chosen_tokens(store: TokenStore, documents: np.ndarray) -> list[int]:
    return [
        index
        for n in np.flatnonzero(documents)
        for index in range(store.offsets[n], store.offsets[n + 1])
    ]


@pytest.mark.parametrize("cross", [False, True])
def test_every_chosen_token_is_in_exactly_one_block(cross: bool) -> None:
    draw = np.random.default_rng(0)
    for _ in range(100):
        lengths = draw.integers(1, 60, draw.integers(1, 40)).tolist()
        store = store_of(lengths)
        documents = draw.random(len(lengths)) < 0.6
        if not documents.any():
            continue
        size = int(draw.integers(1, min(20, len(chosen_tokens(store, documents))) + 1))
        blocks = pack(store, documents, size, cross_documents=cross)
        assert covered(blocks) == chosen_tokens(store, documents)
        assert blocks.length.max() <= size
        assert blocks.length.min() >= 1


def test_blocks_stay_inside_documents_unless_told_otherwise() -> None:
    store = store_of([10, 3, 9])
    everything = np.ones(3, dtype=bool)
    inside = pack(store, everything, 4)
    assert inside.start.tolist() == [0, 4, 8, 10, 13, 17, 21]
    assert inside.length.tolist() == [4, 4, 2, 3, 4, 4, 1]
    across = pack(store, everything, 4, cross_documents=True)
    assert across.start.tolist() == [0, 4, 8, 12, 16, 20]
    assert across.length.tolist() == [4, 4, 4, 4, 4, 2]
    assert inside.start.dtype == np.int64
    assert inside.length.dtype == np.int64


def test_no_block_bridges_a_document_that_is_not_chosen() -> None:
    blocks = pack(store_of([5, 4, 6]), np.array([True, False, True]), 8, cross_documents=True)
    assert blocks.start.tolist() == [0, 9]
    assert blocks.length.tolist() == [5, 6]


def test_less_than_one_block_is_a_mistake() -> None:
    with pytest.raises(InputError, match=r"shorter than one block: 7 tokens .*block_length=8"):
        pack(store_of([4, 3]), np.ones(2, dtype=bool), 8)
    assert pack(store_of([4, 3]), np.ones(2, dtype=bool), 7).length.tolist() == [4, 3]
    with pytest.raises(InputError, match="0 tokens"):
        pack(store_of([4, 3]), np.zeros(2, dtype=bool), 1, cross_documents=True)


def test_ten_million_blocks_are_packed_in_seconds() -> None:
    offsets = np.arange(0, 1_000_001, dtype=np.int64) * 640
    store = TokenStore(np.zeros(0, np.int32), offsets, [], np.zeros(0, np.uint64), {}, Path())
    started = time.process_time()
    blocks = pack(store, np.ones(1_000_000, dtype=bool), 64)
    assert len(blocks.start) == 10_000_000
    assert time.process_time() - started < 5
