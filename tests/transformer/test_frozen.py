"""Layers, tokenizer policy, number format, description, configs."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from dictlearn.configuration import config_dir
from dictlearn.errors import InputError
from dictlearn.transformer import FrozenTransformer
from dictlearn.transformer.embedded import SHA256
from dictlearn.transformer.layers import resolve_layers
from dictlearn.transformer.precision import bfloat16_unit, choose


@pytest.mark.parametrize(
    ("layers", "n_layers", "expected"),
    [
        ("all", 3, (0, 1, 2, 3)),
        ("every_second", 12, (0, 2, 4, 6, 8, 10)),
        ("every_second", 24, tuple(range(0, 24, 2))),
        ("every_second", 6, (0, 2, 4)),
        ([3, 0], 3, (3, 0)),
        (OmegaConf.create([1, 2]), 3, (1, 2)),
    ],
)
def test_layers_are_resolved(
    layers: str | list[int], n_layers: int, expected: tuple[int, ...]
) -> None:
    assert resolve_layers(layers, n_layers) == expected


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([4], r"holds 4: .* 0 \(the embedding output\) to 3"),
        ([0, -1], r"holds -1: .* 0 \(the embedding output\) to 3"),
        ([1.5], r"holds 1.5: "),
        ([True], r"holds True: "),
        ([0, 2, 0], "holds 0 twice: give every index from 0 to 3"),
        ([], "must be all, every_second or a list of indices from 0"),
        (2, "must be all, every_second or a list of indices from 0"),
        ("every_secnd", "is not one of all, every_second. Did you mean 'every_second'"),
    ],
)
def test_wrong_layers_are_told_with_the_valid_range(layers: list[int], message: str) -> None:
    with pytest.raises(InputError, match=f"hidden_states.layers.*{message}"):
        resolve_layers(layers, 3)


def test_bert_puts_cls_and_sep_around_a_text(
    minilm: FrozenTransformer, bert: FrozenTransformer
) -> None:
    assert minilm.special_affixes == ((101,), (102,))
    assert bert.special_affixes == ((2,), (3,))


def test_gpt2_puts_nothing_around_a_text(gpt2: FrozenTransformer) -> None:
    assert gpt2.special_affixes == ((), ())


def test_padding_is_the_padding_token_or_the_end_of_text(
    minilm: FrozenTransformer, gpt2: FrozenTransformer
) -> None:
    assert minilm.pad_id == minilm.tokenizer.pad_token_id == 0
    assert gpt2.tokenizer.pad_token_id is None
    assert gpt2.pad_id == gpt2.tokenizer.eos_token_id


def test_the_description_finds_the_same_model_again(bert_folder: Path) -> None:
    about = FrozenTransformer(str(bert_folder)).describe()
    path, dtype, revision = about["path"], about["dtype"], about["revision"]
    assert isinstance(path, str)
    assert isinstance(dtype, str)
    assert revision is None
    assert FrozenTransformer(path, dtype, revision).describe() == about


def test_the_description_of_the_embedded_model_holds_its_checksum(
    minilm: FrozenTransformer,
) -> None:
    about = minilm.describe()
    assert about["sha256"] == SHA256
    assert about["name"] == "minilm"
    assert about["dtype"] == "float32"
    assert (about["hidden_size"], about["n_layers"]) == (384, 6)


@pytest.mark.parametrize(
    ("name", "expected"), [(None, "tiny-gpt2"), ("My Model 1.5", "my-model-1-5")]
)
def test_a_name_is_a_slug(name: str | None, expected: str, gpt2_folder: Path) -> None:
    """E3 the name of a model has any characters: it becomes a slug before it is part of a path."""
    assert FrozenTransformer(f"{gpt2_folder}/", name=name).name == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_configured_number_format_is_used(dtype: str, bert_folder: Path) -> None:
    transformer = FrozenTransformer(str(bert_folder), dtype=dtype)
    ids = torch.tensor([[2, 9, 3]])
    states = transformer.hidden_states(ids, torch.ones_like(ids), [0, 4])
    assert states.dtype == getattr(torch, dtype)
    assert transformer.describe()["dtype"] == dtype


@pytest.mark.parametrize(
    ("flags", "unit"),
    [
        ("flags : fpu avx512f avx512_bf16", "avx512_bf16"),
        ("flags : avx512f amx_bf16 amx_tile", "amx_bf16"),
        ("flags : fpu avx2 not_avx512_bf16", None),
    ],
)
def test_bfloat16_units_are_read_from_cpuinfo_where_torch_does_not_tell(
    flags: str, unit: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    (tmp_path / "cpuinfo").write_text(flags)
    assert bfloat16_unit(tmp_path / "cpuinfo") == unit
    assert bfloat16_unit(tmp_path / "no such file") is None


def test_auto_takes_bfloat16_exactly_where_the_cpu_computes_in_it() -> None:
    unit, chosen = bfloat16_unit(), choose("auto", torch.device("cpu"))
    assert chosen.dtype == (torch.float32 if unit is None else torch.bfloat16)
    assert (unit or "no bfloat16 units") in chosen.reason


def test_the_number_format_and_its_reason_are_logged(
    bert_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="dictlearn"):
        FrozenTransformer(str(bert_folder)).load()
    expected = choose("auto", torch.device("cpu"))
    assert f"transformer tiny-bert: {expected.name} on cpu: {expected.reason}" in caplog.messages


def test_loading_again_for_the_same_device_does_nothing(bert_folder: Path) -> None:
    transformer = FrozenTransformer(str(bert_folder))
    transformer.load("cpu")
    first = transformer.tapped_model
    transformer.load(torch.device("cpu"))
    assert transformer.tapped_model is first


@pytest.mark.parametrize(
    ("file", "path"),
    [
        ("minilm", "embedded"),
        ("bert_base", "bert-base-uncased"),
        ("bert_large", "bert-large-uncased"),
        ("gpt2", "gpt2"),
        ("pythia_70m", "EleutherAI/pythia-70m"),
        ("local", "???"),
    ],
)
def test_every_config_builds_a_transformer_of_a_given_folder(
    file: str, path: str, bert_folder: Path
) -> None:
    from dictlearn.configuration import build

    config = OmegaConf.load(Path(config_dir()) / "transformer" / f"{file}.yaml")
    assert OmegaConf.to_container(config)["path"] == path  # type: ignore[index,call-overload]
    built = build(OmegaConf.merge(config, {"path": str(bert_folder)}))  # type: ignore[arg-type]
    assert isinstance(built, FrozenTransformer)
    assert built.n_layers == 4
