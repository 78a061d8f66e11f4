"""How long something takes that is done now and again, on a GPU too."""

from __future__ import annotations

import time

import torch


class Stopwatch:
    """Counts the seconds within ``with stopwatch:``.

    What a GPU was given to do before is awaited first, so that its time does not count.
    """

    def __init__(self) -> None:
        self._before = 0.0
        self._since: float | None = None

    def __enter__(self) -> None:
        await_gpu()
        self._since = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self._before, self._since = self.seconds, None

    @property
    def seconds(self) -> float:
        """Those so far, up to now where it runs."""
        running = 0.0 if self._since is None else time.perf_counter() - self._since
        return self._before + running


def await_gpu() -> None:
    """Wait until the GPU of this process, if it has one, has nothing more to do."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
