"""A damaged checkpoint is noticed, named and left out; the one before it takes its place."""

from __future__ import annotations

import logging
import os
import random
import shutil
from pathlib import Path

import pytest
import torch

from dictlearn.resuming import checkpoint_to_go_on_from
from dictlearn.storage import committed as committed_files
from dictlearn.storage.atomic import temporary_of
from dictlearn.storage.checkpoint import AtomicCheckpointIO
from dictlearn.storage.committed import LAST, committed, newest_whole, tidy
from tests.reliability.test_crash_points import save


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("run")
    for step in (1, 2):
        save(folder, step, step, best=False)
    return folder


def damage(path: Path, kind: str, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    place = chance.randrange(len(content))
    if kind == "flipped bit":
        content[place] ^= 1 << chance.randrange(8)
    elif kind == "truncated":
        del content[place:]
    elif kind == "zeroed block":
        end = min(len(content), place + 64)
        if not any(content[place:end]):
            content[place] = 1
        else:
            content[place:end] = bytes(end - place)
    elif kind == "longer":
        content += b"x"
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("kind", "times"),
    [("flipped bit", 200), ("truncated", 200), ("zeroed block", 50), ("longer", 5)],
)
@pytest.mark.parametrize("ending", ["ckpt", "json"])
def test_all_damage_is_found_and_the_checkpoint_before_is_taken(
    kind: str, times: int, ending: str, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A4 checkpoint truncated or bit-flipped on disk: found by its digest, the one before taken."""
    caplog.set_level(logging.WARNING)
    shutil.copytree(run, tmp_path / "run")
    target = tmp_path / "run" / "checkpoints" / f"step=00000002.{ending}"
    sound = target.read_bytes()
    chance = random.Random(0)
    for _ in range(times):
        damage(target, kind, chance)
        caplog.clear()
        found = newest_whole(target.parent)
        assert found is not None
        assert found.step == 1
        assert [record for record in caplog.records if target.name in record.getMessage()]
        target.unlink()  # last.ckpt is the same file
        target.write_bytes(sound)
    whole = newest_whole(target.parent)
    assert whole is not None
    assert whole.step == 2


def test_swapped_and_missing_files_are_found(run: Path, tmp_path: Path) -> None:
    """A4 checkpoint files swapped or gone: left out, the one before taken."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(run / "checkpoints", folder)
    one, two = folder / "step=00000001.ckpt", folder / "step=00000002.ckpt"
    content = one.read_bytes()
    one.unlink()
    found = newest_whole(folder)
    assert found is not None
    assert found.step == 2
    two.unlink()
    two.write_bytes(content)
    assert newest_whole(folder) is None
    with pytest.raises(Exception, match="no checkpoint is whole"):
        checkpoint_to_go_on_from(tmp_path, True)
    assert checkpoint_to_go_on_from(tmp_path, "auto") is None


def test_what_a_killed_process_left_is_cleared_away(run: Path, tmp_path: Path) -> None:
    """A1 left-overs of killed processes: swept at the next start, nothing else is touched."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(run / "checkpoints", folder)
    before = sorted(os.listdir(folder))
    dead = os.fork()
    if dead == 0:
        temporary_of(folder / "step=00000003.ckpt").write_bytes(b"half")
        os._exit(0)
    os.waitpid(dead, 0)
    (folder / "step=00000003.ckpt").write_bytes(b"half")
    alive = temporary_of(folder / "step=00000004.ckpt")
    alive.write_bytes(b"being written")
    assert len(os.listdir(folder)) == len(before) + 3
    tidy(folder)
    assert sorted(os.listdir(folder)) == sorted([*before, alive.name])


def test_last_is_the_newest(run: Path) -> None:
    """A8 old checkpoints go: last.ckpt is a file and the newest, no link that can dangle."""
    last = run / "checkpoints" / LAST
    assert last.is_file()
    assert not last.is_symlink()
    loaded = AtomicCheckpointIO().load_checkpoint(last)
    assert loaded["global_step"] == 2
    assert torch.equal(loaded["state_dict"]["atoms"], torch.full((64, 33), 2.0))


def test_what_is_saved_after_damage_stays(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    save(tmp_path, 1, 1, best=True)
    for step in (5, 6):
        save(tmp_path, step, step, best=False)
        damage(folder / f"step={step:08d}.ckpt", "longer", random.Random(0))
    found = newest_whole(folder)
    assert found is not None
    assert found.step == 1
    for step in (2, 3):  # gone on from there
        save(tmp_path, step, step + 5, best=False)
        found = newest_whole(folder)
        assert found is not None
        assert found.step == step
    assert {entry.step for entry in committed(folder)} == {1, 2, 3}


def test_a_checkpoint_that_cannot_be_read_is_left_out(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    shutil.copytree(run, tmp_path / "run")
    read = committed_files.digest_of_file

    def failing(path: Path) -> str:
        if path.name == "step=00000002.ckpt":
            raise OSError(5, "Input/output error")
        return read(path)

    monkeypatch.setattr(committed_files, "digest_of_file", failing)
    found = checkpoint_to_go_on_from(tmp_path / "run", "auto")
    assert found is not None
    assert found.step == 1
    assert "step=00000002.ckpt is left out: it cannot be read (Input/output error)" in caplog.text
