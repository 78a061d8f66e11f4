from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dictlearn.errors import InputError
from dictlearn.text import TokenStore, tokenize
from tests.text.conftest import Given, sentences


def made(tokenizer: Any, directory: Path, *texts: str) -> TokenStore:
    return tokenize(Given(texts), tokenizer, directory, progress=False)


@pytest.fixture(scope="module")
def store(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    texts = [sentences(n, n + 1 + n % 7) for n in range(400)]
    return made(tokenizer, tmp_path_factory.mktemp("store"), *texts)


def test_a_document_is_held_out_for_its_content_alone(
    store: TokenStore, tokenizer: Any, tmp_path: Path
) -> None:
    """B10 the text changes around a document: it is held out or trained on as before."""
    texts = [sentences(n, n + 1 + n % 7) for n in range(399, 200, -1)]
    other = made(tokenizer, tmp_path, "Something quite different.", *texts)
    chosen = dict(zip(store.content_hashes, store.held_out(0.3), strict=True))
    again = dict(zip(other.content_hashes, other.held_out(0.3), strict=True))
    shared = set(chosen) & set(again)
    assert len(shared) == 199
    assert all(chosen[key] == again[key] for key in shared)


def test_the_fraction_is_met_and_a_larger_one_holds_out_more(store: TokenStore) -> None:
    small, large = store.held_out(0.1), store.held_out(0.4)
    assert 20 <= small.sum() <= 65
    assert 120 <= large.sum() <= 200
    assert not (small & ~large).any()
    assert not store.held_out(0.0).any()


@pytest.mark.parametrize("fraction", [1e-9, 0.5, 1 - 1e-9])
def test_of_two_documents_one_is_held_out_and_one_is_kept(
    tokenizer: Any, tmp_path: Path, fraction: float
) -> None:
    two = made(tokenizer, tmp_path, sentences(0, 5), sentences(5, 9))
    assert two.held_out(fraction).sum() == 1
    assert two.held_out(fraction)[np.argmin(two.content_hashes)]


def test_a_single_document_cannot_be_held_out(tokenizer: Any, tmp_path: Path) -> None:
    one = made(tokenizer, tmp_path, sentences(0, 9))
    with pytest.raises(InputError, match=r"at least two documents.*split_documents=section"):
        one.held_out(0.1)
    assert one.held_out(0.0).tolist() == [False]


def test_every_token_is_located_in_its_document(store: TokenStore) -> None:
    document, position = store.locate(np.arange(len(store.tokens)))
    assert document.dtype == np.int64
    assert position.dtype == np.int64
    lengths = np.diff(store.offsets)
    assert np.array_equal(document, np.repeat(np.arange(400), lengths))
    assert np.array_equal(position, np.concatenate([np.arange(n) for n in lengths]))


@pytest.mark.parametrize("chunk", [1 << 22, 100])
def test_counts_are_those_of_the_chosen_documents(
    store: TokenStore, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dictlearn.text.store._CHUNK", chunk)
    chosen = store.held_out(0.4)
    expected = np.zeros(30522, dtype=np.int64)
    for n in np.flatnonzero(chosen):
        np.add.at(expected, store.tokens[store.offsets[n] : store.offsets[n + 1]], 1)
    assert np.array_equal(store.counts(chosen, 30522), expected)


def test_a_token_id_beyond_the_vocabulary_is_a_mistake(store: TokenStore) -> None:
    """B7 a token id beyond the model's vocabulary: one sentence with both numbers, before any
    forward.
    """
    with pytest.raises(InputError, match=r"token id \d+ >= vocabulary 100"):
        store.counts(np.ones(400, dtype=bool), 100)
