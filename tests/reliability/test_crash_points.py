"""A process that dies at any write, flush, rename or unlink of a save leaves a whole checkpoint."""

from __future__ import annotations

import builtins
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dictlearn.callbacks.checkpoints import RunCheckpoints
from dictlearn.storage.checkpoint import AtomicCheckpointIO
from dictlearn.storage.committed import committed, newest_whole

CALLS = ("fsync", "replace", "rename", "link", "unlink")


def content(step: int) -> dict[str, Any]:
    return {"global_step": step, "state_dict": {"atoms": torch.full((64, 33), float(step))}}


def save(folder: Path, step: int, number: int, best: bool) -> None:
    """What process 0 does at a checkpoint."""
    saver, files = RunCheckpoints(folder), AtomicCheckpointIO()
    saver._number = number
    path = saver.folder / f"step={step:08d}.ckpt"
    path.with_suffix(".json").unlink(missing_ok=True)
    files.save_checkpoint(content(step), path)
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(checkpoint_io=files))
    saver._commit(trainer, path, step, best)


class Dying:
    """Counts what reaches the disk, and dies in the middle of the one that is due."""

    def __init__(self, at: int) -> None:
        self.at, self.count = at, 0

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.tick()
            return call(*args, **kwargs)

        return counted

    def tick(self) -> None:
        self.count += 1
        if self.count == self.at:
            os._exit(9)

    def open(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def opened(*args: Any, **kwargs: Any) -> Any:
            file = call(*args, **kwargs)
            return _Half(file, self) if file.writable() else file

        return opened


class _Half:
    """A file of which a fatal write leaves the first half."""

    def __init__(self, file: Any, dying: Dying) -> None:
        self._file, self._dying = file, dying

    def write(self, data: Any) -> int:
        if self._dying.count + 1 == self._dying.at:
            self._file.write(bytes(data)[: len(bytes(data)) // 2])
            self._file.flush()
        self._dying.tick()
        return int(self._file.write(data))

    def __enter__(self) -> _Half:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def dies_in(work: Callable[[], None], at: int) -> bool:
    """Do the work in a process that dies at call number `at`; tell whether it did."""
    child = os.fork()
    if child == 0:
        dying = Dying(at)
        for name in CALLS:
            setattr(os, name, dying.wrap(getattr(os, name)))
        io_open = dying.open(builtins.open)
        builtins.open = io_open
        import io

        io.open = io_open
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9), code
    return code == 9


@pytest.fixture
def temporary(elsewhere: bool, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Where programs put temporary files, on another file system too: ours must not care."""
    if elsewhere:
        if not os.access("/dev/shm", os.W_OK):
            pytest.skip("there is no /dev/shm to take for another file system")
        with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
            monkeypatch.setenv("TMPDIR", other)
            yield
            assert os.listdir(other) == []
    else:
        yield


SCENARIOS = {
    "first save": [],
    "second save": [(1, False)],
    "rotation": [(1, False), (2, True), (3, False)],
    "the same step again": [(3, True), (4, False)],  # gone on from 3 because 4 was damaged
}


FAST = (("first save", False), ("rotation", True))
REST = [case for case in itertools.product(SCENARIOS, (False, True)) if case not in FAST]


@pytest.mark.usefixtures("temporary")
@pytest.mark.parametrize(
    ("scenario", "elsewhere"),
    [*FAST, *(pytest.param(*case, marks=pytest.mark.slow) for case in REST)],
)
def test_every_moment_of_a_save_is_survivable(scenario: str, tmp_path: Path) -> None:
    """A1 kill -9 at any instant of a checkpoint: the newest whole one is the old or the new."""
    before = tmp_path / "before"
    for number, (step, best) in enumerate(SCENARIOS[scenario]):
        save(before, step, number + 1, best)
    known = [step for step, _ in SCENARIOS[scenario]]
    at, died = 0, True
    while died:
        at += 1
        run = tmp_path / str(at)
        if known:
            shutil.copytree(before, run)
        died = dies_in(lambda run=run: save(run, 4, 9, best=True), at)  # type: ignore[misc]
        found = newest_whole(run / "checkpoints")
        if known or not died:
            assert found is not None, f"nothing is left after call {at}"
            assert found.step in {4, *known[-1:], *(known if 4 in known else [])}
            loaded = AtomicCheckpointIO().load_checkpoint(found.path)
            assert torch.equal(
                loaded["state_dict"]["atoms"], content(found.step)["state_dict"]["atoms"]
            )
            named = {entry.path.name for entry in committed(run / "checkpoints")}
            assert len(named) >= min(2, len(known))
    assert at > 15  # there were that many moments to die at
    assert found is not None
    assert found.step == 4
    shutil.rmtree(tmp_path)
