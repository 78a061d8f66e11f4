from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, GPT2Config

from dictlearn.transformer import FrozenTransformer
from tests.transformer.models import save_bert_tokenizer, save_gpt2_tokenizer, save_model


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    config = BertConfig(
        vocab_size=save_bert_tokenizer(folder),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=48,
    )
    save_model(config, folder)
    return folder


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "Tiny_GPT2"
    n_tokens = save_gpt2_tokenizer(folder)
    config = GPT2Config(
        vocab_size=n_tokens,
        n_embd=32,
        n_layer=3,
        n_head=4,
        n_positions=64,
        bos_token_id=0,
        eos_token_id=0,
    )
    save_model(config, folder)
    return folder


@pytest.fixture(scope="session")
def minilm() -> FrozenTransformer:
    """The embedded model in float32, loaded."""
    transformer = FrozenTransformer("embedded", dtype="float32")
    transformer.load()
    return transformer


@pytest.fixture(scope="session")
def bert(bert_folder: Path) -> FrozenTransformer:
    return FrozenTransformer(str(bert_folder), dtype="float32")


@pytest.fixture(scope="session")
def gpt2(gpt2_folder: Path) -> FrozenTransformer:
    return FrozenTransformer(str(gpt2_folder), dtype="float32")


@pytest.fixture
def padded() -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask `[3, 12]` of three sentences of different lengths, padded on the right."""
    ids = torch.randint(5, 100, (3, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 7:] = mask[2, 3:] = 0
    return ids * mask, mask
