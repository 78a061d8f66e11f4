from __future__ import annotations

from pathlib import Path

import pytest

from dictlearn.errors import InputError
from dictlearn.hidden_states.reading import context, decode_tokens
from dictlearn.text import TokenStore
from dictlearn.transformer import FrozenTransformer
from tests.hidden_states.test_extraction import gpt2_folder

SENTENCE = "unbelievable transformations, wouldn't you say? 3.5 times"


def test_wordpieces_read_as_the_sentence(transformer: FrozenTransformer) -> None:
    ids = transformer.tokenizer.encode(SENTENCE, add_special_tokens=False)
    pieces = decode_tokens(transformer.tokenizer, ids)
    assert len(pieces) == len(ids)
    assert not any("#" in piece for piece in pieces)
    assert "".join(pieces).replace(" ", "") == SENTENCE.replace(" ", "")
    assert " transformations" in pieces


def test_byte_level_pieces_read_as_the_sentence(tmp_path: Path) -> None:
    tokenizer = FrozenTransformer(str(gpt2_folder(tmp_path / "gpt2"))).tokenizer
    ids = tokenizer.encode(SENTENCE, add_special_tokens=False)
    assert "".join(decode_tokens(tokenizer, ids)) == SENTENCE


def test_a_context_holds_the_token_and_ends_with_its_document(store: TokenStore) -> None:
    start, end = int(store.offsets[7]), int(store.offsets[8])
    length = end - start
    for position in (0, 1, length // 2, length - 1):
        ids, target = context(store, 7, position, before=3, after=2)
        assert ids[target] == store.tokens[start + position]
        assert target == min(3, position)
        assert len(ids) - target - 1 == min(2, length - 1 - position)
    assert context(store, 7, -1, 3, 2) == (store.tokens[start : start + 2].tolist(), -1)


def test_what_is_not_in_the_text_is_named(store: TokenStore) -> None:
    n = len(store.document_ids)
    with pytest.raises(InputError, match=f"document {n} is not one"):
        context(store, n, 0, 3, 3)
    with pytest.raises(InputError, match=r"document 0 has .* no token 9999"):
        context(store, 0, 9999, 3, 3)
