"""Work ahead of the consumer, or not: the same results either way."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Generic, Protocol, TypeVar

import torch

T = TypeVar("T")
U = TypeVar("U", covariant=True)


class Pending(Protocol[U]):
    """A result that may still be under way."""

    def result(self) -> U:
        """Return the result; raises what making it raised."""
        ...


class Worker(Protocol):
    """Makes results, now or ahead."""

    def submit(self, make: Callable[[], T], /) -> Pending[T]:
        """Take an order; the orders are carried out one after the other."""
        ...

    def close(self) -> None:
        """Drop what is not begun and end; nothing of it runs on."""
        ...


class _OnDemand(Generic[T]):
    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make

    def result(self) -> T:
        return self._make()


class Foreground:
    """Makes a result when it is asked for."""

    def submit(self, make: Callable[[], T], /) -> Pending[T]:
        """Note the order."""
        return _OnDemand(make)

    def close(self) -> None:
        """Do nothing: nothing runs ahead."""


class Background:
    """Makes results ahead in one thread; on CUDA in a stream of its own, to overlap training."""

    def __init__(self, device: torch.device) -> None:
        self._stream: torch.cuda.Stream | None = None
        begin = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._stream.wait_stream(torch.cuda.current_stream(device))
            # A new thread begins on GPU 0, and leaving a stream's context would return to it:
            # that makes a context of half a GiB there, in every process.
            begin = partial(torch.cuda.set_device, self._stream.device)
        self._threads = ThreadPoolExecutor(1, "hidden_states", initializer=begin)

    def submit(self, make: Callable[[], T], /) -> Pending[T]:
        """Hand the order to the thread."""
        return self._threads.submit(self._run, make)

    def close(self) -> None:
        """Wait for the order under way, drop the others, end the thread."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _run(self, make: Callable[[], T]) -> T:
        if self._stream is None:
            return make()
        with torch.cuda.stream(self._stream):
            made = make()
        self._stream.synchronize()
        return made
