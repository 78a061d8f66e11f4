"""Whatever happens to a file of a cache is found out before a wrong vector is trained on."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import random
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dictlearn.errors import InputError
from dictlearn.hidden_states.cache import manifest as manifests
from dictlearn.transformer import FrozenTransformer
from tests.hidden_states.cache.conftest import MakeCache, cached, everything, same_rows
from tests.hidden_states.conftest import Written

DAMAGED = r"is damaged|cannot be read|not a finished cache"


@pytest.fixture(scope="module")
def pristine(make_cache: MakeCache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that a test may change, if it puts everything back."""
    folder = tmp_path_factory.mktemp("damaged") / "cache"
    make_cache(folder, Written(12, validation_fraction=0.3), shard_vectors=120)
    return folder


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def read_all(folder: Path, **options: Any) -> int:
    """Read everything there is, as training, validation and the factors page do."""
    module = cached(folder, **options)
    rows = everything(module)
    for batch in module.val_dataloader():
        module.decode_tokens(batch.token.tolist())
    return len(rows.layer)


@contextmanager
def changed(path: Path) -> Iterator[bytearray]:
    """Give the content of a file, and put the file back at the end."""
    data = path.read_bytes()
    try:
        yield bytearray(data)
    finally:
        path.write_bytes(data)


def mutations(draw: random.Random, data: bytearray) -> tuple[str, bytes]:
    """Change the content of a file somehow; return how, and the new content."""
    kind = draw.choice(["bit", "bit", "bit", "cut", "zeros", "longer", "empty"])
    at = draw.randrange(len(data))
    if kind == "bit":
        data[at] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        del data[at:]
    elif kind == "zeros":
        while not any(data[at : at + 64]):
            at = draw.randrange(len(data))
        data[at : at + 64] = bytes(len(data[at : at + 64]))
    elif kind == "longer":
        data += draw.randbytes(draw.randrange(1, 100))
    else:
        data.clear()
    return kind, bytes(data)


def test_every_random_change_of_every_file_is_found(pristine: Path) -> None:
    """A5 any file of a cache is damaged at random: found before the training, and named."""
    draw = random.Random(0)
    read_all(pristine)
    files = files_of(pristine)
    assert len(files) > 12
    for turn in range(20 * len(files)):
        path = files[turn % len(files)]
        with changed(path) as data:
            kind, new = mutations(draw, data)
            path.write_bytes(new)
            with pytest.raises(InputError, match=DAMAGED) as error:
                read_all(pristine)
            assert path.name in str(error.value), (kind, path, str(error.value))
    read_all(pristine)


def test_a_missing_file_is_named(pristine: Path) -> None:
    """A5 a file of a cache is missing: one sentence that names it."""
    for path in files_of(pristine):
        with changed(path):
            path.unlink()
            with pytest.raises(InputError, match=DAMAGED) as error:
                read_all(pristine)
            assert path.name in str(error.value)


def test_swapped_and_stale_shards_are_found(
    pristine: Path, make_cache: MakeCache, tmp_path: Path
) -> None:
    """A5 shards of a cache are swapped, or of another one: found before a vector is trained on."""
    shards = sorted(pristine.glob("*-*.safetensors"))
    for one, other in itertools.pairwise(shards):
        with changed(one) as a, changed(other) as b:
            one.write_bytes(b)
            other.write_bytes(a)
            with pytest.raises(InputError, match=DAMAGED):
                read_all(pristine)
    text = Written(12, validation_fraction=0.3)
    make_cache(tmp_path / "other", text, shard_vectors=120, layers=(0, 2))  # the same sizes
    for path in shards:
        with changed(path):
            shutil.copyfile(tmp_path / "other" / path.name, path)
            with pytest.raises(InputError, match="xxh3_64 is") as error:
                read_all(pristine)
            assert path.name in str(error.value)


def test_a_shard_of_wrong_content_is_named_with_both_digests(pristine: Path) -> None:
    """A5 a bit of a shard flips: told with its name, the digest it has and that it should have."""
    path = pristine / "train-00001.safetensors"
    with changed(path) as data:
        data[-1] ^= 1
        path.write_bytes(data)
        shard = manifests.read(pristine).train[1]
        with pytest.raises(InputError) as error:
            read_all(pristine)
        assert re.search(
            rf"{path}.* is [0-9a-f]{{16}} instead of {shard.xxh3_64}", str(error.value)
        )


def test_files_that_are_extra_are_told_and_not_read(
    pristine: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A5 a cache holds a shard that is not part of it: told, and not read."""
    extra = pristine / "train-99999.safetensors"
    n_rows = read_all(pristine)
    shutil.copyfile(pristine / "train-00000.safetensors", extra)
    try:
        with caplog.at_level(logging.WARNING, logger="dictlearn"):
            assert read_all(pristine) == n_rows
        assert [r for r in caplog.records if "not part of the cache" in r.getMessage()]
        assert extra.name in caplog.text
    finally:
        extra.unlink()


@pytest.mark.parametrize("how", ["content", "size", "missing"])
def test_damaged_shards_are_left_out_where_that_is_wanted(
    how: str, pristine: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A5 damaged, truncated or missing shards, on_damage=skip: left out, all other vectors stay."""
    whole = cached(pristine)
    rows, blocks = everything(whole), whole.source.held_out
    n_blocks = len(blocks)
    with (
        changed(pristine / "train-00001.safetensors") as one,
        changed(pristine / "validation-00000.safetensors") as other,
    ):
        for path, data in (("train-00001", one), ("validation-00000", other)):
            file = pristine / f"{path}.safetensors"
            if how == "missing":
                file.unlink()
            else:
                data[len(data) // 2] ^= 1
                file.write_bytes(data if how == "content" else data[:-7])
        with caplog.at_level(logging.WARNING, logger="dictlearn"):
            module = cached(pristine, on_damage="skip", max_vectors=5000)
        assert caplog.text.count("Left out") == 2
        assert "2 damaged shards are left out" in caplog.text
        kept = everything(module)
        shards = manifests.read(pristine).train
        first = 2 * shards[0].tokens
        sound = torch.ones(len(rows.layer), dtype=torch.bool)
        sound[first : first + 2 * shards[1].tokens] = False
        assert torch.equal(kept.vectors, rows.vectors[sound])
        assert len(module.source.held_out) < n_blocks
        held_out = {d for b in module.val_dataloader() for d in b.document.tolist()}
        assert not held_out & set(kept.document.tolist())
        epoch = torch.cat([batch.position for batch in module.train_dataloader()])
        assert len(epoch) >= 5000
    assert same_rows(rows, everything(cached(pristine)))


def test_held_out_blocks_behind_a_left_out_shard_keep_their_vectors(pristine: Path) -> None:
    whole = cached(pristine, validation_vectors=10**6)
    shards = manifests.read(pristine).validation
    assert len(shards) > 1
    before = whole.source.held_out
    lengths = before.n_tokens(np.arange(len(before)))
    n_first = int(np.searchsorted(np.cumsum(lengths), shards[0].tokens)) + 1
    rest = before.extract(np.arange(n_first, len(before)))
    path = pristine / shards[0].file
    with changed(path) as data:
        path.write_bytes(data[:-1])
        after = cached(pristine, on_damage="skip").source.held_out
        found = after.extract(np.arange(len(after)))
    assert all(torch.equal(a, b) for a, b in zip(rest, found, strict=True))


def test_nothing_sound_held_out_is_said(pristine: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A5 no held-out shard is sound, on_damage=skip: a warning says what there will not be."""
    with contextlib.ExitStack() as stack:
        for shard in manifests.read(pristine).validation:
            path = pristine / shard.file
            path.write_bytes(stack.enter_context(changed(path))[:-1])
        data = cached(pristine, on_damage="skip")
        data.setup()
        assert data.val_dataloader() == []
    assert "there will be no held-out figures" in caplog.text


def test_without_verification_only_sizes_are_checked(pristine: Path) -> None:
    path = pristine / "train-00000.safetensors"
    with changed(path) as data:
        data[-1] ^= 1
        path.write_bytes(data)
        read_all(pristine, verify=False)
        path.write_bytes(data[:-1])
        with pytest.raises(InputError, match=DAMAGED):
            read_all(pristine, verify=False)


def test_a_finished_cache_repairs_itself(
    make_cache: MakeCache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A5 files of a cache are damaged or gone when it is made again: only they are, bit by bit."""
    text = Written(12, validation_fraction=0.3)
    make_cache(tmp_path / "cache", text, shard_vectors=120)
    before = {path: path.read_bytes() for path in files_of(tmp_path / "cache")}
    for name in ("train-00001.safetensors", "text/pieces.json", "statistics.safetensors"):
        path = tmp_path / "cache" / name
        path.write_bytes(before[path][:-1] + b"?")
    (tmp_path / "cache" / "validation-00000.safetensors").unlink()
    with caplog.at_level(logging.INFO, logger="dictlearn"):
        make_cache(tmp_path / "cache", text, shard_vectors=120)
    assert "4 files are made again" in caplog.text
    assert "2 of" in caplog.text
    assert {path: path.read_bytes() for path in files_of(tmp_path / "cache")} == before


def sealed(body: dict[str, Any]) -> bytes:
    """A manifest with a right digest of itself and any content."""
    import xxhash

    text = json.dumps({"xxh3_64": "0" * 16, **body}, indent=1) + "\n"
    return text.replace("0" * 16, xxhash.xxh3_64(text.encode()).hexdigest(), 1).encode()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train", [{"file": "../../secret", "tokens": 1, "bytes": 1, "xxh3_64": "0"}]),
        ("train", [{"file": "train-00000.safetensors", "tokens": -1, "bytes": 1, "xxh3_64": "0"}]),
        ("train", [{"file": 3, "tokens": 1, "bytes": 1, "xxh3_64": "0"}]),
        ("train", [{"file": "train-00000.safetensors", "tokens": 1}]),
        ("files", [{"file": "/etc/passwd", "bytes": 1, "xxh3_64": "0"}]),
        ("layers", [0, "a"]),
        ("hidden_size", 1e9),
        ("recipe", []),
        ("dtype", None),
    ],
)
def test_a_hostile_manifest_is_an_error_of_ours(key: str, value: object, pristine: Path) -> None:
    """E3, E6 a forged manifest, paths out of its folder or absurd numbers in it: one sentence."""
    path = pristine / "manifest.json"
    with changed(path) as data:
        body = {**json.loads(data), key: value}
        del body["xxh3_64"]
        path.write_bytes(sealed(body))
        with pytest.raises(InputError, match=r"no manifest of a cache|is damaged|cannot be read"):
            read_all(pristine)


def test_a_manifest_of_a_newer_version_or_of_any_size_is_refused(pristine: Path) -> None:
    """E6, E9 a manifest of a cache of a newer version, or a gigantic one: one sentence."""
    path = pristine / "manifest.json"
    with changed(path) as data:
        body = {**json.loads(data), "format": 2}
        del body["xxh3_64"]
        path.write_bytes(sealed(body))
        with pytest.raises(InputError, match="has format 2, this version reads 1"):
            read_all(pristine)
        with path.open("wb") as file:
            file.truncate(1 << 40)
        with pytest.raises(InputError, match="at most"):
            read_all(pristine)


def test_sizes_that_do_not_fit_the_manifest_are_refused(
    pristine: Path, transformer: FrozenTransformer
) -> None:
    path = pristine / "manifest.json"
    with changed(path) as data:
        body = json.loads(data)
        del body["xxh3_64"]
        body["hidden_size"] = 10**12
        path.write_bytes(sealed(body))
        module = cached(pristine)
        with pytest.raises(InputError, match="is no shard of this cache"):
            module.source._train._open(0)  # type: ignore[union-attr]
