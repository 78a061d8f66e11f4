"""A file or folder is there whole, or not at all."""

import errno
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dictlearn.storage.atomic import atomic_file, atomic_folder, sweep, temporary_of, write_text


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


def of_another_machine(path: Path) -> Path:
    """The temporary name of a process of the same number on a machine of another name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "uname", lambda: SimpleNamespace(nodename="another"))
        return temporary_of(path)


def of_a_dead_process(path: Path) -> Path:
    """The temporary name of a process of this machine that has ended, and something there."""
    dead = os.fork()
    if dead == 0:
        temporary_of(path).write_text("half")
        os._exit(0)
    os.waitpid(dead, 0)
    (found,) = path.parent.glob(f".{path.name}.*")
    return found


def age(path: Path, hours: float) -> None:
    then = time.time() - 3600 * hours
    for part in (*path.glob("*"), path):
        os.utime(part, (then, then))


def test_no_two_processes_write_to_one_temporary_name(tmp_path: Path) -> None:
    """A6 processes of the same number on two machines write the same file: each to a temporary file
    of its own.
    """
    target = tmp_path / "file.txt"
    assert temporary_of(target) == temporary_of(target)
    names = {temporary_of(target), of_another_machine(target), of_a_dead_process(target)}
    assert len(names) == 3
    assert {name.parent for name in names} == {tmp_path}


def test_what_a_dead_process_of_this_machine_left_goes_at_once(tmp_path: Path) -> None:
    mine = temporary_of(tmp_path / "file.txt")
    mine.write_text("being written")
    age(mine, 1000)  # a stopped process may go on
    of_a_dead_process(tmp_path / "other.txt")
    sweep(tmp_path)
    assert os.listdir(tmp_path) == [mine.name]


@pytest.mark.parametrize("kind", ["another machine", "a name of before"])
def test_what_cannot_be_known_to_have_ended_is_cleared_away_after_a_day(
    kind: str, tmp_path: Path
) -> None:
    """A1 left-overs of a process that was killed on another machine: swept a day after the last
    write, and not before.
    """
    left = []
    for name in ("file.txt", "store"):
        before = tmp_path / f".{name}.4194305.tmp"  # no process has so high a number
        left.append(before if kind != "another machine" else of_another_machine(tmp_path / name))
    file, folder = left
    file.write_text("half")
    folder.mkdir()
    (folder / "tokens.npy").write_text("half")
    for hours in (0, 23):
        for path in left:
            age(path, hours)
        sweep(tmp_path)
        assert sorted(tmp_path.iterdir()) == left
    for path in left:
        age(path, 25)
    age(folder / "tokens.npy", 1)  # writing to a file is no change of its folder
    sweep(tmp_path)
    assert [*tmp_path.iterdir()] == [folder]
    age(folder, 25)
    sweep(tmp_path)
    assert os.listdir(tmp_path) == []


def test_files_of_other_programs_stay(tmp_path: Path) -> None:
    for name in (".file.tmp", ".file.draft.tmp", ".file.12-34.tmp", "file.12.tmp", ".12.tmp"):
        (tmp_path / name).write_text("not ours")
        age(tmp_path / name, 1000)
    before = sorted(os.listdir(tmp_path))
    sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == before
