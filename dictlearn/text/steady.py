"""Rows from a server that may go away for a while: asked again, from where it broke off."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dictlearn.outage import is_outage, short_silences
from dictlearn.text.documents import Place

logger = logging.getLogger(__name__)

WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before each further attempt; a batch that arrives starts them anew."""

ENOUGH = 60.0
"""Seconds without a row: there is no further attempt that would end later than that, if it takes as
long as the one before."""


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


def _is_stream(rows: Any) -> bool:
    import datasets

    return isinstance(rows, datasets.IterableDataset)


@contextmanager
def _own_attempts_only() -> Iterator[None]:
    """Keep `datasets` from asking 20 times on its own: together that would take a quarter hour."""
    from datasets import config

    names = [name for name in vars(config) if name.startswith("STREAMING_") and "RETR" in name]
    before = {name: getattr(config, name) for name in names}
    for name in before:
        setattr(config, name, int(name.endswith("MAX_RETRIES")))
    try:
        with short_silences():
            yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)
