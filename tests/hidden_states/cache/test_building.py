"""A cache is made once, and is there whole or goes on."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dictlearn.errors import InputError
from dictlearn.hidden_states.cache import building
from dictlearn.hidden_states.cache.shards import write_shard
from tests.hidden_states.cache.conftest import TEXT, MakeCache, cached, content, everything
from tests.hidden_states.conftest import Written


def test_finished_shards_are_kept(
    make_cache: MakeCache, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(Exception):  # noqa: N818
        pass

    def write(*given: Any) -> Any:
        if len(made) == 4:
            raise Stop
        made.append(original(*given))
        return made[-1]

    made: list[Any] = []
    original = write_shard
    monkeypatch.setattr(building, "write_shard", write)
    with pytest.raises(Stop):
        make_cache(tmp_path / "cache", TEXT, shard_vectors=200)
    times = {shard.file: (tmp_path / "cache" / shard.file).stat().st_mtime_ns for shard in made}
    made.append(None)  # from now on nothing stops it
    make_cache(tmp_path / "cache", TEXT, shard_vectors=200)
    assert content(tmp_path / "cache") == whole
    for name, before in times.items():
        assert (tmp_path / "cache" / name).stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("hidden_states.block_length", {"block_length": 8}),
        ("hidden_states.layers", {"layers": (0, 2)}),
        ("hidden_states.special_tokens", {"special_tokens": "none"}),
        ("dtype", {"dtype": "bfloat16"}),
        ("shard_vectors", {"shard_vectors": 300}),
        ("max_vectors", {"max_vectors": 100}),
        ("seed", {"seed": 1}),
        ("text", {"text": Written(41, validation_fraction=0.2)}),
        ("text.validation_fraction", {"text": Written(40, validation_fraction=0.3)}),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_other_options_in_the_same_folder_are_refused_by_name(
    key: str, options: dict[str, Any], finished: bool, make_cache: MakeCache, shared: list[Path]
) -> None:
    folder = shared[not finished]
    before = content(folder)
    with pytest.raises(InputError, match=rf"holds a cache with {key}=") as error:
        make_cache(folder, **{"text": TEXT, "shard_vectors": 200, **options})
    assert str(error.value).count(key) == 2
    assert content(folder) == before


@pytest.fixture(scope="module")
def shared(make_cache: MakeCache, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A finished cache, and one that is only begun."""
    place = tmp_path_factory.mktemp("shared")
    make_cache(place / "finished", TEXT, shard_vectors=200)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "_announce", lambda *given: (_ for _ in ()).throw(KeyError))
        with pytest.raises(KeyError):
            make_cache(place / "begun", TEXT, shard_vectors=200)
    return [place / "finished", place / "begun"]


def test_a_finished_cache_is_left_as_it_is(
    make_cache: MakeCache, shared: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    before = {path: path.stat().st_mtime_ns for path in shared[0].rglob("*")}
    with caplog.at_level(logging.INFO, logger="dictlearn"):
        make_cache(shared[0], TEXT, shard_vectors=200)
    assert "nothing to do" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in shared[0].rglob("*")} == before


@pytest.mark.parametrize("plan", [b"{", b"[1]", b"\xff\xfe{}", b"null"])
def test_a_damaged_plan_is_told(plan: bytes, make_cache: MakeCache, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(plan)
    with pytest.raises(InputError, match=r"plan\.json is damaged: delete"):
        make_cache(tmp_path, TEXT)


def test_a_finished_cache_that_may_not_be_written_to_is_left_as_it_is(
    shared: list[Path],
    make_cache: MakeCache,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refused(path: Path, flags: int, *rest: int) -> int:
        if flags & (os.O_CREAT | os.O_RDWR):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return opened(path, flags, *rest)

    opened = os.open
    monkeypatch.setattr(os, "open", refused)
    test_a_finished_cache_is_left_as_it_is(make_cache, shared, caplog)


def test_a_folder_of_other_things_is_refused(make_cache: MakeCache, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="holds other files"):
        make_cache(tmp_path, TEXT)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_the_size_is_told_before_and_is_what_it_takes(
    make_cache: MakeCache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="dictlearn"):
        make_cache(tmp_path / "cache", TEXT, shard_vectors=200)
    told = next(r.args for r in caplog.records if "are to be made" in r.getMessage())
    module = cached(tmp_path / "cache")
    assert isinstance(told, tuple)
    assert told[1] == len(everything(module).layer)
    assert "width 384 in 2 layers, float32" in caplog.text
    needed = str(told[-2])
    there = sum(p.stat().st_size for p in (tmp_path / "cache").glob("*-*.safetensors"))
    assert there / 2**20 < float(needed.split()[0]) < 1.1 * there / 2**20 + 0.1


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_a_disk_that_cannot_hold_it_is_refused_before_anything_is_written(
    make_cache: MakeCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A3 the disk is too small for a cache: told with both sizes before a vector is written."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 4096))
    with pytest.raises(InputError, match=r"needs .* MiB and its disk has 4 KiB free"):
        make_cache(tmp_path / "cache", TEXT)
    assert os.listdir(tmp_path / "cache") == ["plan.json"]


def test_a_disk_that_is_full_all_the_same_leaves_what_is_finished(
    make_cache: MakeCache, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A3 a full disk while a cache is made: what is finished stays, the same command goes on."""

    def write(path: Path, *given: Any) -> Any:
        if path.name == "train-00003.safetensors":
            raise OSError(28, "No space left on device")
        return original(path, *given)

    original = write_shard
    monkeypatch.setattr(building, "write_shard", write)
    with pytest.raises(InputError, match=r"No space left on device.*the same command goes on"):
        make_cache(tmp_path / "cache", TEXT, shard_vectors=200)
    assert len([*(tmp_path / "cache").glob("train-*")]) == 3
    monkeypatch.undo()
    make_cache(tmp_path / "cache", TEXT, shard_vectors=200)
    assert content(tmp_path / "cache") == whole


def test_a_limit_below_one_block_is_told(make_cache: MakeCache, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="max_vectors=1 is less than one token block"):
        make_cache(tmp_path / "cache", TEXT, max_vectors=1)
