"""A checkpoint is there whole or not at all, and reading one runs no code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from dictlearn.errors import InputError
from dictlearn.storage.checkpoint import AtomicCheckpointIO

PLAIN = {"state_dict": {"atoms": torch.arange(6.0).view(2, 3)}, "vectors_seen": 7, "name": "run"}


class Hostile:
    """A pickle that makes a file when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


class Unsaveable:
    """Something whose writing fails in the middle of a checkpoint."""

    def __reduce__(self) -> tuple[Any, ...]:
        raise OSError("disk full")


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    files, path = AtomicCheckpointIO(), tmp_path / "new" / "last.ckpt"
    files.save_checkpoint(PLAIN, str(path))
    found = files.load_checkpoint(str(path))
    assert torch.equal(found["state_dict"]["atoms"], PLAIN["state_dict"]["atoms"])  # type: ignore[index]
    assert (found["vectors_seen"], found["name"]) == (7, "run")
    assert os.listdir(path.parent) == ["last.ckpt"]


def test_an_error_while_writing_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    """A1 an error while a checkpoint is written: the old one is as it was."""
    files, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    files.save_checkpoint(PLAIN, path)
    before = path.read_bytes()
    half = {"weights": torch.randn(1000, 100), "broken": Unsaveable()}
    with pytest.raises(OSError, match="disk full"):
        files.save_checkpoint(half, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["last.ckpt"]
    assert files.load_checkpoint(path)["vectors_seen"] == 7


def test_a_new_checkpoint_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    files, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    for seen in (1, 2):
        files.save_checkpoint({**PLAIN, "vectors_seen": seen}, path)
    assert files.load_checkpoint(path)["vectors_seen"] == 2
    assert os.listdir(tmp_path) == ["last.ckpt"]


@pytest.mark.parametrize("weights_only", [None, True, False])
def test_reading_a_checkpoint_never_runs_code_in_it(
    weights_only: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E1 a pickle in a checkpoint: never executed, whatever the environment asks for."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1" if weights_only is None else "0")
    path, marker = tmp_path / "hostile.ckpt", tmp_path / "marker"
    torch.save({"state_dict": Hostile(marker)}, path)
    with pytest.raises(InputError, match=r"hostile\.ckpt is not a checkpoint of tensors"):
        AtomicCheckpointIO().load_checkpoint(path, weights_only=weights_only)
    assert not marker.exists()


@pytest.mark.parametrize("kept", [0, 10, 300, -30])
def test_a_truncated_checkpoint_is_told_in_one_sentence(kept: int, tmp_path: Path) -> None:
    """A4 a checkpoint given by name is truncated: one sentence."""
    files, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    files.save_checkpoint(PLAIN, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"last\.ckpt is not a checkpoint .* or is damaged"):
        files.load_checkpoint(path)


def test_a_checkpoint_that_is_not_there_is_told_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no checkpoint .*nothing\.ckpt"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "nothing.ckpt")
