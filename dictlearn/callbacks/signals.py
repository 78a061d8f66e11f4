"""Signals that ask a run to stop: noted at once, acted upon between two steps."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, Self

import pytorch_lightning as pl

from dictlearn.stopping import stop_sweep, sweep_signal

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopSignals:
    """Notes the first stop signal; the second one ends the process at once.

    Lightning's handlers talk to the other processes from within the handler, in the middle of
    whatever these were talking about: under DDP they hang. Here nothing happens in the handler. A
    thread reads from a socket what came, so that a second signal is heard also where the main
    thread waits for a process that will never answer.

    Args:
        last_words: what is done before the process ends at once, for example to its children.
        signals: those that ask to stop.

    Attributes:
        received: the signal that came first, or that stops the sweep of this run, or None.
    """

    def __init__(
        self,
        last_words: Callable[[], object] = lambda: None,
        signals: Iterable[signal.Signals] = STOPPING,
    ) -> None:
        self._received: signal.Signals | None = None
        self._last_words, self._signals = last_words, tuple(signals)
        self._before: dict[signal.Signals, Any] = {}
        self._wakeup_before = -1
        self._ears: tuple[socket.socket, socket.socket] | None = None

    @property
    def received(self) -> signal.Signals | None:  # noqa: D102 - an attribute, see above
        return self._received or sweep_signal()

    def install(self) -> None:
        """Take the signals over; outside the main thread, where no handler is allowed, do not."""
        if self._ears is not None or threading.current_thread() is not threading.main_thread():
            return
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        self._ears = (reader, writer)
        self._wakeup_before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, _noted) for number in self._signals}
        threading.Thread(target=self._listen, args=(reader,), daemon=True).start()

    def remove(self) -> None:
        """Give the signals back; what was heard also stops the sweep of this run, if any."""
        if self._ears is None:
            return
        if self._received is not None:
            stop_sweep(self._received)
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._wakeup_before)
        reader, writer = self._ears
        self._ears = None
        writer.close()  # the thread reads the end of it, and ends
        del reader

    def __enter__(self) -> Self:
        self.install()
        return self

    def __exit__(self, *raised: object) -> None:
        self.remove()

    def _listen(self, reader: socket.socket) -> None:
        with reader:
            while heard := reader.recv(1):
                number = heard[0]
                if number not in self._signals:
                    continue
                if self._received is not None:
                    self._last_words()
                    os._exit(128 + number)
                self._received = signal.Signals(number)


def kill_children(trainer: pl.Trainer) -> None:
    """Kill the processes that this one has started for a run."""
    for child in getattr(trainer.strategy.launcher, "procs", []):
        child.kill()


def _noted(number: int, frame: FrameType | None) -> None:
    """Do nothing: what matters is that the signal does not end the process."""
