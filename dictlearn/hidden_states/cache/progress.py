"""How far the making of a cache is: a bar on a terminal, lines in the log elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

Progress = Callable[[int], None]
"""Takes the number of vectors that were added."""

_LOG_SECONDS = 30.0


def _in_log(n_vectors: int) -> Progress:
    """Return a function that logs how many there are, their speed and the minutes left."""
    began = last = time.monotonic()
    done = 0

    def report(vectors: int) -> None:
        """Add `vectors`; log a line if the last one is `_LOG_SECONDS` old."""
        nonlocal last, done
        done += vectors
        now = time.monotonic()
        if now - last >= _LOG_SECONDS:
            last = now
            speed = done / (now - began)
            left = (n_vectors - done) / speed / 60
            log.info("%d of %d vectors, %.0f a second, %.0f min left", done, n_vectors, speed, left)

    return report


@contextmanager
def _on_terminal(n_vectors: int) -> Iterator[Progress]:
    """Yield a function that moves a bar on the standard error, which goes away at the end."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("hidden states: {task.completed:,} of {task.total:,} vectors"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=n_vectors)

        def report(vectors: int) -> None:
            """Add `vectors` to the bar."""
            bar.advance(task, vectors)

        yield report


@contextmanager
def reporting(shown: bool, n_vectors: int) -> Iterator[Progress]:
    """Yield the function to call with the number of vectors that were added.

    Args:
        shown: a bar on a terminal, a log line every 30 s otherwise; False: neither.
        n_vectors: how many there will be.
    """
    if not shown:
        yield lambda vectors: None
    elif sys.stderr.isatty():
        with _on_terminal(n_vectors) as report:
            yield report
    else:
        yield _in_log(n_vectors)
