"""Work ahead of the consumer, or not: the same results either way."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

import torch

from dictlearn.errors import InputError

PATIENCE = 1800.0
"""Seconds that a result may keep the run waiting: far longer than any takes that will come."""

T = TypeVar("T")
U = TypeVar("U", covariant=True)


class Pending(Protocol[U]):
    """A result that may still be under way."""

    def result(self) -> U:
        """Return the result, when it is there; raise what making it raised.

        Raises:
            InputError: it does not come.
        """
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
        """Make it now."""
        return self._make()


class Foreground:
    """Makes a result when it is asked for."""

    def submit(self, make: Callable[[], T], /) -> Pending[T]:
        """Note the order."""
        return _OnDemand(make)

    def close(self) -> None:
        """Do nothing: nothing runs ahead."""


class _Awaited(Generic[T]):
    def __init__(self, future: Future[T], worker: Background) -> None:
        self._future, self._worker = future, worker

    def result(self) -> T:
        """Wait for the thread, `PATIENCE` seconds at most; see `Pending.result`."""
        try:
            return self._future.result(PATIENCE)
        except TimeoutError:
            if self._future.done():  # it is what making it raised
                raise
            self._worker.hangs = True
            raise InputError(
                f"For {PATIENCE / 60:g} minutes no hidden states have come: the model, the GPU or"
                " the disk that they are read from does not answer. Go on with run=DIR resume=true,"
                " or wait without end by hidden_states.prefetch=false."
            ) from None


class Background:
    """Makes results ahead in one thread; on CUDA in a stream of its own, to overlap training.

    Attributes:
        hangs: whether a result did not come. The thread cannot be ended then, and nobody waits
            for it, nor does Python at its end.
    """

    def __init__(self, device: torch.device) -> None:
        self.hangs = False
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._stream.wait_stream(torch.cuda.current_stream(device))
        self._orders: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="hidden_states", daemon=True)
        self._thread.start()

    def submit(self, make: Callable[[], T], /) -> Pending[T]:
        """Hand the order to the thread."""
        future: Future[T] = Future()
        self._orders.put((future, make))
        return _Awaited(future, self)

    def close(self) -> None:
        """Wait for the order under way, drop the others, end the thread."""
        self._closed = True
        self._orders.put(None)
        if not self.hangs:
            self._thread.join()

    def _work(self) -> None:
        if self._stream is not None:
            # A new thread begins on GPU 0, and leaving a stream's context would return to it:
            # that makes a context of half a GiB there, in every process.
            torch.cuda.set_device(self._stream.device)
        while (order := self._orders.get()) is not None:
            if not self._closed:
                self._carry_out(*order)
            del order  # with its result, which may be large

    def _carry_out(self, future: Future[T], make: Callable[[], T]) -> None:
        try:
            future.set_result(self._run(make))
        except BaseException as error:  # raised where the result is waited for
            future.set_exception(error)

    def _run(self, make: Callable[[], T]) -> T:
        if self._stream is None:
            return make()
        with torch.cuda.stream(self._stream):
            made = make()
        self._stream.synchronize()
        return made
