"""How far the tokenising is: a line on a terminal, lines in the log elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]  # of documents and tokens so far

_LOG_SECONDS = 30.0


def _silent(documents: int, tokens: int) -> None:
    """Report nothing."""


def _to_log(name: str) -> Progress:
    last = time.monotonic()

    def report(documents: int, tokens: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _LOG_SECONDS:
            last = time.monotonic()
            logger.info("tokens of %s so far: %d documents, %d tokens", name, documents, tokens)

    return report


@contextmanager
def _on_terminal(name: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"tokenising {name}", total=None)

        def report(documents: int, tokens: int) -> None:
            text = f"tokenising {name}: {documents:,} documents, {tokens:,} tokens"
            bar.update(task, description=text)

        yield report


@contextmanager
def reporting(progress: bool | Progress, name: str) -> Iterator[Progress]:
    """Yield the function to call with (documents, tokens) after each batch.

    Args:
        progress: True: a bar on a terminal, a log line every 30 s otherwise; False: neither; or
            the function itself.
        name: of the text source.
    """
    if callable(progress):
        yield progress
    elif not progress:
        yield _silent
    elif sys.stderr.isatty():
        with _on_terminal(name) as report:
            yield report
    else:
        yield _to_log(name)
