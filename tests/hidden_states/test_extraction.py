from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dictlearn.errors import InputError
from dictlearn.hidden_states.extraction import Extractor, Frame
from dictlearn.hidden_states.options import StreamOptions
from dictlearn.hidden_states.stream import lane_block_bytes
from dictlearn.text import pack, tokenize
from dictlearn.transformer import FrozenTransformer
from tests.hidden_states.conftest import Bench, Written


def alone(transformer: FrozenTransformer, ids: list[int], layer: int) -> Tensor:
    """Hidden states of one unpadded sequence, without this room."""
    tensor = torch.tensor([ids])
    return transformer.hidden_states(tensor, torch.ones_like(tensor), [layer])[0, 0].float()


def test_rows_are_the_transformers_hidden_states_of_the_block_alone(
    bench: Bench, transformer: FrozenTransformer
) -> None:
    numbers = np.array([5, 0, 17, 3, 9])
    rows, (before, after) = bench.extractor.rows(numbers), transformer.special_affixes
    n_layers, done = 2, 0
    total = int(bench.extractor.n_tokens(numbers).sum())
    assert len(rows.vectors) == n_layers * total
    for number in numbers:
        start, length = (int(column[number]) for column in bench.extractor.blocks[:2])
        ids = bench.store.tokens[start : start + length].tolist()
        for i, layer in enumerate((0, 3)):
            part = slice(i * total + done, i * total + done + length)
            expected = alone(transformer, [*before, *ids, *after], layer)[len(before) :][:length]
            torch.testing.assert_close(rows.vectors[part], expected, atol=2e-5, rtol=1e-4)
            assert rows.layer[part].tolist() == [layer] * length
            assert rows.token[part].tolist() == ids
        done += length


def test_rows_know_their_document_and_position(bench: Bench) -> None:
    rows = bench.extractor.rows(np.arange(len(bench.extractor.blocks.start)))
    index = torch.from_numpy(bench.store.offsets)[rows.document] + rows.position
    assert torch.equal(torch.from_numpy(bench.store.tokens[index.numpy()]).long(), rows.token)
    assert rows.vectors.dtype == torch.float32
    assert set(rows.weight.tolist()) == {1.0}


def test_rows_of_a_block_do_not_depend_on_what_else_is_computed(bench: Bench) -> None:
    first = bench.extractor.extract(np.array([8, 1, 2, 3]))
    other = bench.extractor.extract(np.array([8]))
    length = len(other.token)
    assert torch.equal(first.vectors[:, :length], other.vectors)


def test_kept_special_tokens_are_rows_at_position_minus_one(
    bench: Bench, transformer: FrozenTransformer
) -> None:
    frame = bench.extractor.frame._replace(keep=True)
    blocks = bench.extractor.blocks
    kept = Extractor(transformer, bench.store, blocks, (3,), frame)
    numbers = np.array([2, 4])
    rows = kept.rows(numbers)
    special = rows.position == -1
    before, after = transformer.special_affixes
    assert rows.token[special].tolist() == [*before, *after] * 2
    plain = bench.extractor.rows(numbers)
    in_layer = plain.layer == 3
    torch.testing.assert_close(rows.vectors[~special], plain.vectors[in_layer])
    documents = bench.store.locate(blocks.start[numbers])[0].repeat(len([*before, *after]))
    assert rows.document[special].tolist() == documents.tolist()


def test_vectors_are_kept_in_the_computing_type_and_delivered_in_float32(bench: Bench) -> None:
    half = FrozenTransformer(dtype="bfloat16")
    extractor = Extractor(half, bench.store, bench.extractor.blocks, (0, 3), bench.extractor.frame)
    numbers = np.array([1, 2])
    assert extractor.extract(numbers).vectors.dtype == torch.bfloat16
    assert lane_block_bytes(extractor, 4) < 0.6 * lane_block_bytes(bench.extractor, 4)
    rows, exact = extractor.rows(numbers).vectors, bench.extractor.rows(numbers).vectors
    assert rows.dtype == torch.float32
    assert 0 < float((rows - exact).norm() / exact.norm()) < 0.02


class NotFinite(FrozenTransformer):
    """The embedded transformer, with one number of one layer spoilt."""

    def hidden_states(
        self, input_ids: Tensor, attention_mask: Tensor, layers: Sequence[int]
    ) -> Tensor:
        hidden = super().hidden_states(input_ids, attention_mask, layers).clone()
        hidden[list(layers).index(3), 1, 2, 7] = float("nan")
        return hidden


def test_a_hidden_state_that_is_not_finite_is_named_with_layer_and_document(bench: Bench) -> None:
    """B1 a hidden state is not finite: named with layer, document and token, and the others are
    bit-equal.
    """
    spoilt = Extractor(
        NotFinite(dtype="float32"),
        bench.store,
        bench.extractor.blocks,
        (0, 3),
        bench.extractor.frame,
    )
    numbers = np.array([0, 6, 9])
    document, position = bench.store.locate(bench.extractor.blocks.start[[6]] + 1)
    name = bench.store.document_ids[document[0]]
    named = rf"hidden_states\[3\] .*'{name}' at token {position[0]}"
    with pytest.raises(InputError, match=f"{named}; with it 1 tokens"):
        spoilt.rows(numbers)
    spoilt.soundness.most_non_finite, spoilt.soundness.non_finite = 1, set()
    rows, sound = spoilt.rows(numbers), bench.extractor.rows(numbers)
    left_out = (rows.document == document[0]) & (rows.position == position[0])
    assert int(left_out.sum()) == len(spoilt.layers)
    assert (rows.weight == torch.where(left_out, 0.0, 1.0)).all()
    assert torch.equal(rows.vectors[left_out], rows.vectors[left_out.roll(-1)])
    of_layers = torch.isin(sound.layer, rows.layer)
    assert torch.equal(rows.vectors[~left_out], sound.vectors[of_layers][~left_out])
    again = spoilt.rows(numbers)
    assert torch.equal(again.vectors, rows.vectors)
    assert len(spoilt.soundness.non_finite) == 1  # a token is counted once


def test_blocks_longer_than_the_transformer_takes_are_refused_at_once(
    bench: Bench, transformer: FrozenTransformer
) -> None:
    message = r"hidden_states\.block_length=511 and 2 special tokens .* 512 .*block_length=510"
    with pytest.raises(InputError, match=message):
        Frame.of(transformer, StreamOptions(block_length=511))
    assert Frame.of(transformer, StreamOptions(block_length=510)).width == 512
    bare = Frame.of(transformer, StreamOptions(block_length=512, special_tokens="none"))
    assert bare.width == 512
    frame = bench.extractor.frame._replace(block_length=511)
    with pytest.raises(InputError, match=message):
        Extractor(transformer, bench.store, bench.extractor.blocks, (0,), frame)


def test_ids_beyond_the_vocabulary_are_refused_before_the_transformer_sees_them(
    bench: Bench, transformer: FrozenTransformer
) -> None:
    """B7 a token id beyond the vocabulary reaches the extraction: refused on the CPU, before the
    model sees it.
    """
    wrong = replace(bench.store, tokens=bench.store.tokens + transformer.vocabulary_size)
    extractor = Extractor(transformer, wrong, bench.extractor.blocks, (0,), bench.extractor.frame)
    with pytest.raises(InputError, match="do not belong together"):
        extractor.rows(np.array([0]))


def gpt2_folder(folder: Path) -> Path:
    """A tiny random GPT-2 with a byte-level tokenizer, saved as users save theirs."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2Model, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((d.text for d in Written().documents()), trainer)
    end = "<|endoftext|>"
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=tokenizer, bos_token=end, eos_token=end).save_pretrained(folder)
    torch.manual_seed(0)
    size: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32}
    GPT2Model(GPT2Config(vocab_size=tokenizer.get_vocab_size(), **size)).save_pretrained(folder)
    return folder


def test_gpt2_gives_rows_too(tmp_path: Path) -> None:
    transformer = FrozenTransformer(str(gpt2_folder(tmp_path / "gpt2")), dtype="float32")
    store = tokenize(Written(8), transformer.tokenizer, tmp_path / "tokens")
    blocks = pack(store, np.ones(8, dtype=bool), 16)
    frame = Frame.of(transformer, StreamOptions(block_length=16, sequences_per_block=4))
    extractor = Extractor(transformer, store, blocks, (0, 1, 2), frame)
    rows = extractor.rows(np.arange(len(blocks.start)))
    assert rows.vectors.shape == (3 * len(store.tokens), 32)
    start, length = int(blocks.start[1]), int(blocks.length[1])
    ids = store.tokens[start : start + length].tolist()
    part = extractor.rows(np.array([1])).vectors[-length:]
    torch.testing.assert_close(part, alone(transformer, ids, 2), atol=1e-5, rtol=1e-4)
    with pytest.raises(InputError, match="32 positions"):
        Frame.of(transformer, StreamOptions(block_length=33))
