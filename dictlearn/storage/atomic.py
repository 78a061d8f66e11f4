"""The one way in which this project puts a file or a folder on disk.

Written beside the target, flushed to the disk, then renamed: whoever looks sees the old content or
the new one, never half of either.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

# Where the process is, which names of before did not say, and its number.
_TEMPORARY = re.compile(r"\..+\.(?:([0-9a-f]{12})-)?(\d+)\.tmp", re.ASCII | re.DOTALL)
_ABANDONED = 24 * 60 * 60  # seconds without a write, after which nobody writes any more


def temporary_of(path: Path) -> Path:
    """Return the name beside `path` under which this process, and no other anywhere, writes it."""
    return path.with_name(f".{path.name}.{_place()}-{os.getpid()}.tmp")


def _place() -> str:
    """Return 12 digits for where the number of a process means that process.

    That is a machine since it was started, and a PID namespace: machines and containers that share
    a disk cannot see each other's processes, and give the same numbers to different ones.
    """
    known = [os.uname().nodename]
    with suppress(OSError):  # where there is no /proc, the name of the machine is all
        known.append(str(Path("/proc/self/ns/pid").readlink()))
        known.append(Path("/proc/sys/kernel/random/boot_id").read_text())
    return hashlib.blake2b("\n".join(known).encode(errors="replace"), digest_size=6).hexdigest()


def _sync(path: Path) -> None:
    """Flush a file or the names in a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Yield a binary file that takes the name `path` only when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_of(path)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:  # a second Ctrl-C leaves nothing half written either
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path`, atomically."""
    with atomic_file(path) as file:
        file.write(text.encode("utf-8", errors="replace"))


def sweep(folder: Path) -> None:
    """Delete the temporary files that nobody writes any more.

    They are those of ended processes of this machine and PID namespace. Whether a process elsewhere
    has ended cannot be known: its files, and those with names of before, go a day after the last
    write to them.
    """
    for path in folder.glob(".*.tmp"):
        with suppress(OSError):  # it has its name by now, another process swept it, or may alone
            if not _is_left(path):
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def _is_left(path: Path) -> bool:
    found = _TEMPORARY.fullmatch(path.name)
    if found is None:
        return False
    if found[1] == _place():
        return not _runs(int(found[2]))
    written = max(part.stat().st_mtime for part in (path, *path.glob("*")))
    return time.time() - written > _ABANDONED


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the name `path` when the block ends without an error.

    Its files are flushed to the disk before it does; it holds no folders.

    When another process made `path` in the meantime, theirs stays and ours is dropped: use it for
    folders whose name says their content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_of(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for part in temporary.iterdir():
            _sync(part)
        _sync(temporary)
        try:
            temporary.rename(path)
        except OSError:
            if not path.is_dir():
                raise
        _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
