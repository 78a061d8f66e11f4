"""A file or folder is there whole, or not at all."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from dictlearn.storage.atomic import atomic_file, atomic_folder, write_text


def test_an_error_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a" / "file.txt"
    write_text(target, "old")

    def fail() -> None:
        with atomic_file(target) as file:
            file.write(b"half of the new")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert target.read_text() == "old"
    assert os.listdir(target.parent) == ["file.txt"]


def test_the_new_content_takes_the_name(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    for text in ("one", "two"):
        write_text(target, text)
    assert target.read_text() == "two"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_folder_appears_whole_and_the_first_one_stays(tmp_path: Path) -> None:
    target = tmp_path / "store"
    with atomic_folder(target) as folder:
        (folder / "x").write_text("first")
        assert not target.exists()
    with atomic_folder(target) as folder:
        (folder / "x").write_text("second")
    assert (target / "x").read_text() == "first"
    assert os.listdir(tmp_path) == ["store"]


def test_an_error_leaves_no_folder(tmp_path: Path) -> None:
    def fail() -> None:
        with atomic_folder(tmp_path / "store") as folder:
            (folder / "x").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert os.listdir(tmp_path) == []


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of the disk, in order."""
    calls: list[str] = []
    fsync, replace, rename = os.fsync, os.replace, os.rename

    def flushed(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").resolve()
        size = path.stat().st_size
        calls.append(f"flush folder {path.name}" if path.is_dir() else f"flush {size} bytes")
        fsync(descriptor)

    def moved(source: Any, target: Any, *_: Any, how: Any = replace, **__: Any) -> None:
        calls.append(f"rename to {Path(target).name}")
        how(source, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", moved)
    monkeypatch.setattr(os, "rename", lambda *names: moved(*names, how=rename))
    return calls


def test_a_file_is_on_the_disk_before_its_name_and_the_name_before_we_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A2 the power fails at any moment of a write: content is flushed before its name, then the
    name.
    """
    calls = recorded(monkeypatch)
    with atomic_file(tmp_path / "of" / "atoms.bin") as file:
        file.write(b"x" * 100)
        file.write(b"y" * 23)
        calls.append("written")
    assert calls == ["written", "flush 123 bytes", "rename to atoms.bin", "flush folder of"]


def test_a_folder_is_flushed_after_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A2 the power fails while a token store is made: its files are flushed before the name."""
    calls = recorded(monkeypatch)
    with atomic_folder(tmp_path / "of" / "store") as folder:
        for name in ("tokens.npy", "meta.json"):
            (folder / name).write_bytes(b"z" * 10)
    assert calls[-2:] == ["rename to store", "flush folder of"]
    assert calls[:-2].count("flush 10 bytes") == 2
    assert calls[:-2][-1].startswith("flush folder .store.")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_call_that_fails_leaves_the_old_file(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A3 the disk fails at a flush or a rename: the old file stays, and no temporary one."""
    write_text(tmp_path / "file.txt", "old")

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="broken"):
        write_text(tmp_path / "file.txt", "new")
    assert (tmp_path / "file.txt").read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]
