"""A cache ends as one, whoever is killed, and by however many processes it is made, anywhere."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import pytest

from dictlearn.errors import InputError
from dictlearn.hidden_states.cache import building
from dictlearn.hidden_states.cache.shards import write_shard
from dictlearn.hidden_states.extraction import Extractor
from tests.hidden_states.cache.conftest import TEXT, MakeCache, cached, content

NOT_PERMITTED = 77


@contextmanager
def processes(*works: Callable[[], object]) -> Iterator[list[ForkProcess]]:
    """Run functions in processes of their own; none is left at the end."""
    started = [multiprocessing.get_context("fork").Process(target=work) for work in works]
    for process in started:
        process.start()
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.join()


def until(done: Callable[[], bool], process: ForkProcess) -> None:
    """Wait for something that a process does."""
    while not done():
        assert process.exitcode is None
        time.sleep(0.01)


def slowly(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every forward pass take so long, at least."""

    def extract(self: Extractor, numbers: Any) -> Any:
        time.sleep(seconds)
        return original(self, numbers)

    original = Extractor.extract
    monkeypatch.setattr(Extractor, "extract", extract)


@pytest.mark.slow
def test_killed_again_and_again_it_ends_as_if_never_stopped(
    make_cache: MakeCache,
    whole: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A1 kill -9 at many moments while a cache is made: what is not finished is refused, and the
    same command ends with the bytes of one that was never stopped.
    """
    slowly(0.01, monkeypatch)
    folder, kills = tmp_path / "cache", 0
    for trial in range(15):
        with processes(lambda: make_cache(folder, TEXT, shard_vectors=200)) as (process,):
            process.join(0.05 + 0.037 * trial % 0.6)
            if process.exitcode == 0:
                break
            assert process.exitcode is None
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        if not (folder / "manifest.json").exists():
            with pytest.raises(InputError, match=r"not a finished cache|is not there|neither"):
                cached(folder)
    monkeypatch.undo()
    make_cache(folder, TEXT, shard_vectors=200)
    assert kills >= 3
    assert content(folder) == whole


def test_several_processes_share_the_work_and_make_the_same_bytes(
    make_cache: MakeCache, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A6 three processes make one cache at once: each shard is made by one of them, and the bytes
    are those that one process makes.
    """

    def work(number: int) -> Callable[[], None]:
        def made_by(*given: Any) -> Any:
            with (tmp_path / f"made by {number}").open("a") as file:
                file.write(f"{given[0].name}\n")
            return original(*given)

        def run() -> None:
            monkeypatch.setattr(building, "write_shard", made_by)  # in this process alone
            make_cache(tmp_path / "cache", TEXT, shard_vectors=200)

        return run

    slowly(0.02, monkeypatch)
    original = write_shard
    with processes(*(work(number) for number in range(3))) as started:
        for process in started:
            process.join(60)
            assert process.exitcode == 0
    assert content(tmp_path / "cache") == whole
    made = [(tmp_path / f"made by {number}").read_text().split() for number in range(3)]
    assert all(len(names) >= 2 for names in made)
    names = [name for part in made for name in part]
    assert len(names) == len(set(names)) == sum(".safetensors" in name for name in whole) - 1


def test_the_shard_of_a_process_that_dies_is_made_by_another(
    make_cache: MakeCache, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A6 one of two processes that make a cache is killed in a shard: the other waits for it, then
    makes that shard too.
    """

    def hang(*given: Any) -> Any:
        (tmp_path / "hanging").touch()
        time.sleep(600)

    def stuck() -> None:
        monkeypatch.setattr(building, "write_shard", hang)
        make_cache(tmp_path / "cache", TEXT, shard_vectors=200)

    with processes(stuck) as (victim,):
        until((tmp_path / "hanging").exists, victim)
        with processes(lambda: make_cache(tmp_path / "cache", TEXT, shard_vectors=200)) as (other,):
            other.join(1.5)
            assert other.exitcode is None  # it waits for the one that is stuck
            victim.kill()
            other.join(60)
            assert other.exitcode == 0
    assert content(tmp_path / "cache") == whole


def test_processes_that_mend_a_cache_at_once_take_it_apart_once(
    make_cache: MakeCache, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A6 two processes find one cache damaged: one of them takes it up again, the other helps, and
    what is not damaged is not made again.
    """

    def held_up(*given: Any, **options: Any) -> None:
        if given[0].name == "text":
            (tmp_path / "at it").touch()
            while not (tmp_path / "go on").exists():
                time.sleep(0.01)
        remove(*given, **options)

    def first() -> None:
        monkeypatch.setattr(shutil, "rmtree", held_up)  # in this process alone
        second()

    def second() -> None:
        monkeypatch.setattr(building, "write_shard", noted)
        make_cache(folder, TEXT, shard_vectors=200)

    def noted(*given: Any) -> Any:
        with (tmp_path / "made").open("a") as file:
            file.write(f"{given[0].name}\n")
        return write_shard(*given)

    folder, remove = tmp_path / "cache", shutil.rmtree
    make_cache(folder, TEXT, shard_vectors=200)
    for name in ("train-00002.safetensors", "text/tokens.npy"):
        data = bytearray((folder / name).read_bytes())
        data[-1] ^= 1
        (folder / name).write_bytes(data)
    with processes(first) as (one,):
        until((tmp_path / "at it").exists, one)
        with processes(second) as (other,):
            other.join(1)
            (tmp_path / "go on").touch()
            for process in (one, other):
                process.join(60)
                assert process.exitcode == 0
    assert content(folder) == whole
    assert (tmp_path / "made").read_text().split() == ["train-00002.safetensors"]


def in_a_pid_namespace(work: Callable[[], object]) -> None:
    """Do it in a child that sees no process but itself, as on another machine or in a container."""
    libc = ctypes.CDLL(None)
    new_pid, new_user, die_with_parent = 0x20000000, 0x10000000, 1
    if libc.unshare(new_pid) and libc.unshare(new_pid | new_user):
        os._exit(NOT_PERMITTED)
    child = os.fork()
    if child:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)
    libc.prctl(die_with_parent, signal.SIGKILL)
    assert os.getpid() == 1
    work()


def test_a_process_elsewhere_takes_nothing_away_that_another_writes(
    make_cache: MakeCache, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A6 processes on several machines, or in several containers, make one cache: none deletes what
    another writes, and together they make the bytes that one alone makes.
    """

    def make() -> None:
        make_cache(tmp_path / "cache", TEXT, shard_vectors=200)

    def held_up(path: Path, layout: Any, parts: Iterator[Any]) -> Any:
        def slow_parts() -> Iterator[Any]:
            for number, part in enumerate(parts):
                while number == 1 and not (tmp_path / "go on").exists():
                    time.sleep(0.01)
                yield part

        return original(path, layout, slow_parts())

    def first() -> None:
        monkeypatch.setattr(building, "write_shard", held_up)  # in this process alone
        make()

    original = write_shard
    with processes(lambda: in_a_pid_namespace(lambda: None)) as (trial,):
        trial.join(10)
        if trial.exitcode == NOT_PERMITTED:
            pytest.skip("no PID namespace can be made here (unshare: not permitted)")
    with processes(first) as (one,):
        until(lambda: any((tmp_path / "cache").glob(".train-00000.*.tmp")), one)
        with processes(lambda: in_a_pid_namespace(make)) as (other,):
            until(lambda: (tmp_path / "cache" / "train-00001.safetensors").exists(), other)
            (tmp_path / "go on").touch()
            for process in (one, other):
                process.join(60)
                assert process.exitcode == 0
    assert content(tmp_path / "cache") == whole
