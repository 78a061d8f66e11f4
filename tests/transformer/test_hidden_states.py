"""Hidden states against transformers' own, on the embedded model and small random ones."""

from __future__ import annotations

import copy
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AutoModel,
    DistilBertConfig,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
    RobertaConfig,
    XLNetConfig,
)

from dictlearn.errors import InputError
from dictlearn.transformer import FrozenTransformer
from tests.transformer.models import save_bert_tokenizer, save_model

Padded = tuple[Tensor, Tensor]


def own_states(path: str | Path, ids: Tensor, mask: Tensor) -> Tensor:
    """What transformers itself returns, `[L, b, t, d]`."""
    model = AutoModel.from_pretrained(path, local_files_only=True, dtype=torch.float32).eval()
    with torch.no_grad():
        result = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    return torch.stack(list(result.hidden_states))


def counted_calls(transformer: FrozenTransformer) -> list[int]:
    """A list that grows by the index of every block that starts to compute."""
    model, calls = transformer.tapped_model.model, list[int]()
    layers = max((m for m in model.modules() if isinstance(m, nn.ModuleList)), key=len)
    for index, block in enumerate(layers):
        forward = block.forward
        assert callable(forward)

        def counted(*args: object, i: int = index, f: object = forward, **more: object) -> object:
            calls.append(i)
            return f(*args, **more)  # type: ignore[operator]

        block.forward = counted
    return calls


@pytest.mark.parametrize("name", ["minilm", "bert", "gpt2"])
def test_every_hidden_state_is_the_one_of_transformers(
    name: str, padded: Padded, request: pytest.FixtureRequest
) -> None:
    transformer: FrozenTransformer = request.getfixturevalue(name)
    ids, mask = padded
    expected = own_states(str(transformer._source.folder), ids, mask)
    every = transformer.resolve_layers("all")
    assert len(every) == transformer.n_layers + 1 == len(expected)
    together = transformer.hidden_states(ids, mask, every)
    torch.testing.assert_close(together, expected, atol=1e-5, rtol=1e-5)
    for layer in every:
        alone = transformer.hidden_states(ids, mask, [layer])
        torch.testing.assert_close(alone, expected[layer : layer + 1], atol=1e-5, rtol=1e-5)


def test_the_last_hidden_state_of_gpt2_is_after_the_final_layer_norm(
    gpt2: FrozenTransformer, padded: Padded
) -> None:
    last = gpt2.hidden_states(*padded, [gpt2.n_layers])[0]
    torch.testing.assert_close(last.mean(-1), torch.zeros(3, 12), atol=1e-5, rtol=0)


def test_layers_come_in_the_order_asked_for(bert: FrozenTransformer, padded: Padded) -> None:
    every = bert.hidden_states(*padded, range(5))
    assert torch.equal(bert.hidden_states(*padded, [4, 0, 2]), every[[4, 0, 2]])


@pytest.mark.parametrize("name", ["minilm", "bert", "gpt2"])
def test_padding_and_batch_size_do_not_change_a_hidden_state(
    name: str, padded: Padded, request: pytest.FixtureRequest
) -> None:
    transformer: FrozenTransformer = request.getfixturevalue(name)
    ids, mask = padded
    every = transformer.resolve_layers("all")
    together = transformer.hidden_states(ids, mask, every)
    for row, length in enumerate(mask.sum(1).tolist()):
        alone = ids[row : row + 1, :length]
        states = transformer.hidden_states(alone, torch.ones_like(alone), every)
        torch.testing.assert_close(states[:, 0], together[:, row, :length], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("layers", "expected"), [([0], 0), ([2, 1], 2), ([3], 3), ([4], 4)])
def test_blocks_after_the_last_tapped_layer_do_not_compute(
    layers: list[int], expected: int, bert_folder: Path, padded: Padded
) -> None:
    transformer = FrozenTransformer(str(bert_folder), dtype="float32")
    transformer.load()
    assert transformer.tapped_model.exits_early
    calls = counted_calls(transformer)
    transformer.hidden_states(*padded, layers)
    assert calls == list(range(expected))


def test_the_pooler_is_not_even_made(minilm: FrozenTransformer) -> None:
    names = [name for name, _ in minilm.tapped_model.model.named_parameters()]
    assert not any("pooler" in name for name in names)


def test_no_hook_stays_behind_also_after_an_error(bert_folder: Path, padded: Padded) -> None:
    transformer = FrozenTransformer(str(bert_folder), dtype="float32")
    transformer.hidden_states(*padded, [1])
    ids, mask = padded
    with pytest.raises(RuntimeError):
        transformer.hidden_states(ids, mask[:, :5], [1])
    modules = transformer.tapped_model.model.modules()
    assert not any(module._forward_pre_hooks for module in modules)
    assert transformer.hidden_states(ids, mask, [4]).isfinite().all()


def test_the_model_is_frozen_and_its_dropout_is_off(
    gpt2: FrozenTransformer, padded: Padded
) -> None:
    model = gpt2.tapped_model.model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    once, twice = (gpt2.hidden_states(*padded, [0, 1, 3]) for _ in range(2))
    assert torch.equal(once, twice)
    assert not once.requires_grad


def test_hidden_states_can_take_part_in_training(bert: FrozenTransformer, padded: Padded) -> None:
    x = bert.hidden_states(*padded, [2])[0].flatten(0, 1)
    atoms = torch.randn(8, 32, requires_grad=True)
    (gradient,) = torch.autograd.grad((x @ atoms.T).square().sum(), atoms)
    assert gradient.isfinite().all()


def test_mixed_precision_around_it_changes_nothing(bert: FrozenTransformer, padded: Padded) -> None:
    expected = bert.hidden_states(*padded, [3])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(bert.hidden_states(*padded, [3]), expected)


def test_threads_do_not_disturb_each_other(bert: FrozenTransformer, padded: Padded) -> None:
    expected = bert.hidden_states(*padded, range(5))
    wrong: list[int] = []

    def work(layer: int) -> None:
        for _ in range(20):
            if not torch.equal(bert.hidden_states(*padded, [layer])[0], expected[layer]):
                wrong.append(layer)

    threads = [threading.Thread(target=work, args=(layer,)) for layer in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_copy_and_a_pickle_compute_the_same(bert: FrozenTransformer, padded: Padded) -> None:
    expected = bert.hidden_states(*padded, [4])
    for other in (copy.deepcopy(bert), pickle.loads(pickle.dumps(bert))):
        assert torch.equal(other.hidden_states(*padded, [4]), expected)


def test_bfloat16_stays_within_five_percent_of_float32(minilm: FrozenTransformer) -> None:
    half = FrozenTransformer("embedded", dtype="bfloat16")
    text = "The river bank was flooded, so the bank in the town closed early."
    ids = torch.tensor([minilm.tokenizer.encode(text)])
    mask = torch.ones_like(ids)
    exact = minilm.hidden_states(ids, mask, range(7))
    rounded = half.hidden_states(ids, mask, range(7))
    assert rounded.dtype == torch.bfloat16
    error = (rounded.float() - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert 1e-4 < float(error.mean()) < 0.02
    assert float(error.max()) < 0.05


SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
SMALL["vocab_size"] = 160
OTHERS = {
    "roberta": RobertaConfig(**SMALL, intermediate_size=32, max_position_embeddings=20),
    "distilbert": DistilBertConfig(dim=16, n_layers=3, n_heads=2, hidden_dim=32, vocab_size=160),
    "pythia": GPTNeoXConfig(**SMALL, intermediate_size=32),
    "llama": LlamaConfig(**SMALL, intermediate_size=32),
    "opt": OPTConfig(**SMALL, ffn_dim=32, word_embed_proj_dim=16),
    "albert": AlbertConfig(**SMALL, intermediate_size=32, embedding_size=8),
    "xlnet": XLNetConfig(d_model=16, n_layer=3, n_head=2, d_inner=32, vocab_size=160),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_architectures_give_their_own_hidden_states(
    name: str, padded: Padded, tmp_path: Path
) -> None:
    config: PreTrainedConfig = OTHERS[name]
    save_model(config, tmp_path)
    transformer = FrozenTransformer(str(tmp_path), dtype="float32")
    ids, mask = padded[0].clamp(min=5), padded[1]
    expected = own_states(tmp_path, ids, mask)
    real = mask.bool()
    for layers in ([0], [2], [3], [0, 1, 2, 3]):
        states = transformer.hidden_states(ids, mask, layers)
        torch.testing.assert_close(states[:, real], expected[layers][:, real], atol=1e-5, rtol=1e-5)
    # Shared layers and a transposed batch cannot be tapped: correct, only without early exit.
    assert transformer.tapped_model.exits_early == (name not in ("albert", "xlnet"))


def test_roberta_loses_the_positions_below_its_padding_id(tmp_path: Path) -> None:
    save_model(OTHERS["roberta"], tmp_path)
    transformer = FrozenTransformer(str(tmp_path), dtype="float32")
    assert transformer.max_positions == 18
    ids = torch.full((1, 18), 7)
    assert transformer.hidden_states(ids, torch.ones_like(ids), [3]).isfinite().all()
    with pytest.raises(InputError, match="19 tokens are more than the 18 positions"):
        transformer.hidden_states(torch.full((1, 19), 7), torch.ones(1, 19), [3])


@pytest.mark.parametrize("wrong", [-1, 160, 10**6])
def test_a_token_id_outside_of_the_vocabulary_is_refused(wrong: int, bert_folder: Path) -> None:
    transformer = FrozenTransformer(str(bert_folder), dtype="float32")
    ids = torch.tensor([[5, wrong]])
    with pytest.raises(InputError, match=f"token id {wrong} is not one of the"):
        transformer.hidden_states(ids, torch.ones_like(ids), [0])


def test_weights_of_another_architecture_are_refused(tmp_path: Path, bert_folder: Path) -> None:
    save_bert_tokenizer(tmp_path)
    deeper = FrozenTransformer(str(bert_folder))._config
    deeper.num_hidden_layers = 5
    deeper.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").symlink_to(bert_folder / "model.safetensors")
    with pytest.raises(InputError, match=r"16 of the model's parameters .* do not\s+belong"):
        FrozenTransformer(str(tmp_path)).load()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu_hidden_states_agree_with_the_cpu(bert_folder: Path, padded: Padded) -> None:
    on_cpu, on_gpu = (FrozenTransformer(str(bert_folder), dtype="float32") for _ in range(2))
    on_gpu.load("cuda")
    expected = on_cpu.hidden_states(*padded, [0, 2, 4])
    found = on_gpu.hidden_states(*padded, [0, 2, 4])
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), expected, atol=1e-3, rtol=1e-3)
