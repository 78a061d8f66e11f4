"""Who makes what: processes of one or several machines share the work without talking."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = ".lock"


class Locks:
    """One lock for every number, all in one file; the system frees those of a process that dies.

    Where the file system knows no locks everybody gets every one: work is then done twice, and
    nothing worse.

    Args:
        folder: where the file is.
    """

    def __init__(self, folder: Path) -> None:
        self._file = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o666)

    @contextmanager
    def take(self, number: int, wait: bool) -> Iterator[bool]:
        """Yield whether the lock is ours; with `wait` it is, sooner or later."""
        if not self._taken(number, wait):
            yield False
            return
        try:
            yield True
        finally:
            self._locked(fcntl.LOCK_UN, number)

    def _taken(self, number: int, wait: bool) -> bool:
        try:
            self._locked(fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), number)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _locked(self, operation: int, number: int) -> None:
        try:
            fcntl.lockf(self._file, operation, 1, number)
        except (BlockingIOError, PermissionError):
            raise
        except OSError:
            pass  # no locks here

    @contextmanager
    def alone(self, number: int) -> Iterator[None]:
        """Hold a lock, and free all of them at the end."""
        try:
            with self.take(number, wait=True):
                yield
        finally:
            self.close()

    def close(self) -> None:
        """Free all of them."""
        os.close(self._file)
