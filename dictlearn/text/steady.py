"""Rows from a server that may go away for a while: asked again, from where it broke off."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dictlearn.text.documents import Place

logger = logging.getLogger(__name__)

WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before each further attempt; a batch that arrives starts them anew."""

ENOUGH = 60.0
"""Seconds without a row: there is no further attempt that would end later than that, if it takes as
long as the one before."""

SILENCE = 5
"""Seconds for which the hub's client waits for an answer, where the user has not said. It asks six
times by itself, with 23 s of waits: its own 10 s would make that 83."""

# What their modules begin with: newer versions are called httpx2 and the like.
_CLIENTS = ("aiohttp", "httpcore", "httpx", "requests", "urllib3")
_TOO_MANY, _TIMEOUT, _SERVER = 429, 408, 500


class Interrupted(Exception):  # noqa: N818 - the error is its cause
    """A server did not answer any more, however often it was asked.

    Attributes:
        place: up to where all rows had arrived.
    """

    def __init__(self, place: Place) -> None:
        super().__init__(f"after row {place.rows}")
        self.place = place


def steady_batches(
    load: Callable[[], Any], size: int, place: Place | None = None
) -> Iterator[dict[str, list[Any]]]:
    """Yield the rows of a dataset in batches, every row once and in order.

    Args:
        load: returns a Dataset, or an IterableDataset whose rows come over a network.
        size: rows of a batch.
        place: where to begin; None: with the first row.

    Raises:
        Interrupted: the network failed at every attempt.
    """
    with _own_attempts_only():
        rows = load()  # where the libraries ask again by themselves
        if not _is_stream(rows):
            rest = rows.select(range(place.rows, len(rows))) if place else rows
            yield from rest.iter(batch_size=size)
            return
        yield from _resumed(rows, size, place)


def _resumed(rows: Any, size: int, place: Place | None) -> Iterator[dict[str, list[Any]]]:
    if place is not None:
        rows.load_state_dict(place.state)
    attempts = _Attempts(place.rows if place else 0)
    state, found = rows.state_dict(), rows.iter(batch_size=size)
    while True:
        attempts.begin()
        try:
            batch = next(found, None)
        except Exception as error:  # each client has its own; `wait` raises what is no outage
            attempts.wait(error, state)
            # The place after the last whole batch: what was read of the next one comes again.
            rows.load_state_dict(state)
            found = rows.iter(batch_size=size)
            continue
        if batch is None:
            return
        state = rows.state_dict()
        attempts.succeeded(len(next(iter(batch.values()))))
        yield batch


class _Attempts:
    """Counts failures in a row, and waits longer after each."""

    def __init__(self, rows: int) -> None:
        self.rows, self._failures, self._began, self._asked = rows, 0, 0.0, 0.0

    def begin(self) -> None:
        self._asked = time.monotonic()
        if self._failures == 0:
            self._began = self._asked

    def succeeded(self, n_rows: int) -> None:
        self.rows += n_rows
        self._failures = 0

    def wait(self, error: Exception, state: dict[str, Any]) -> None:
        """Wait before the next attempt; raise the error if another one would not help."""
        if not is_outage(error):
            raise error
        seconds = WAITS[self._failures] if self._failures < len(WAITS) else ENOUGH
        now = time.monotonic()
        if now - self._began + seconds + now - self._asked > ENOUGH:
            raise Interrupted(Place(self.rows, state)) from error
        self._failures += 1
        logger.warning(
            "the network failed after row %d (%s): attempt %d of %d in %g s",
            *(self.rows, type(error).__name__, self._failures, len(WAITS), seconds),
        )
        time.sleep(seconds)


def is_outage(error: BaseException) -> bool:
    """Tell whether an error, or what caused it, is of the network and may pass."""
    seen: BaseException | None = error
    while seen is not None:
        status = getattr(getattr(seen, "response", None), "status_code", None)
        status = getattr(seen, "status", status)  # aiohttp's name for it
        if isinstance(status, int):
            return status in (_TOO_MANY, _TIMEOUT) or status >= _SERVER
        of_client = type(seen).__module__.startswith(_CLIENTS)
        if of_client or isinstance(seen, ConnectionError | TimeoutError):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _is_stream(rows: Any) -> bool:
    import datasets

    return isinstance(rows, datasets.IterableDataset)


@contextmanager
def _own_attempts_only() -> Iterator[None]:
    """Keep `datasets` from asking 20 times on its own, and the hub's client from long silences:
    together that would take a quarter hour.
    """  # noqa: D205
    from datasets import config
    from huggingface_hub import constants

    names = [name for name in vars(config) if name.startswith("STREAMING_") and "RETR" in name]
    before = [(config, name, getattr(config, name)) for name in names]
    for name in names:
        setattr(config, name, int(name.endswith("MAX_RETRIES")))
    if constants.HF_HUB_DOWNLOAD_TIMEOUT == constants.DEFAULT_DOWNLOAD_TIMEOUT:
        before.append((constants, "HF_HUB_DOWNLOAD_TIMEOUT", constants.HF_HUB_DOWNLOAD_TIMEOUT))
        constants.HF_HUB_DOWNLOAD_TIMEOUT = SILENCE
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
