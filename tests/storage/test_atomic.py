"""A file or folder is there whole, or not at all."""

import os
from pathlib import Path

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
