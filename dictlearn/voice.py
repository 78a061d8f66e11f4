"""Who tells of a failure: the process that failed first, once for all processes of a run."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from dictlearn.errors import Lost, Stopped, one_line
from dictlearn.launch import has_checkpoint, is_main_process, say, world

_GONE = re.compile(
    r"connection (closed|reset|refused)|broken pipe|timed out|application timeout|ncclRemoteError",
    re.IGNORECASE,
)
_TOLD, _HERE = "dictlearn/told", "told_here"
_SECONDS = 3.0  # after which whoever failed like the main process was ended by the launcher


@contextmanager
def one_voice(folder: Path) -> Iterator[None]:
    """Settle which process tells of a failure, and know one that comes of another process's end.

    Around what the processes do together, and inside of what takes them apart.

    Args:
        folder: the run directory.

    Raises:
        Lost: another process has ended, or does not answer.
    """
    try:
        yield
    except Stopped:
        raise
    except Exception as error:  # a run may end by any, and each has to be told once
        found = _lost(error, folder)
        setattr(found or error, _HERE, _is_first(found is not None))
        if found is None:
            raise
        raise found from error


def tell_failure(sentence: str, error: Exception | None) -> None:
    """Say on the standard error why this process ends, unless another process says it."""
    if not getattr(error, _HERE, is_main_process()):
        return
    if not is_main_process() and _store() is not None:
        from torch import distributed

        sentence = f"rank {distributed.get_rank()}: {sentence}"
    say(sentence)


def leave_behind(error: Lost) -> NoReturn:
    """Tell that another process is gone, and end at once with exit code 1.

    To take the connections apart would wait for the one that is gone; gloo was also seen to abort.
    """
    tell_failure(str(error), error)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _lost(error: Exception, folder: Path) -> Lost | None:
    """Return what an error says of another process of the run, if it does."""
    from torch import distributed

    text = one_line(error)
    gloo = isinstance(error, RuntimeError) and "gloo" in text  # it has no kind of its own
    talking = gloo or isinstance(error, distributed.DistError)
    found = _GONE.search(text) if talking else None
    if found is None:
        return None
    reason = text[found.start() :].partition(". ")[0]
    going_on = f"; go on with: python train.py run={folder} resume=true"
    return Lost(
        f"Another process of this run has ended, or does not answer ({reason}). What it said, if "
        f"anything, is above{going_on if has_checkpoint(folder) else ''}"
    )


def _is_first(lost: bool) -> bool:
    """Tell whether nobody has told yet; without a common store, whether this process may know more.

    Args:
        lost: whether this process only tells that another one is gone.
    """
    store = _store()
    if store is not None:
        try:
            return bool(store.add(_TOLD, 1) == 1)
        except RuntimeError:  # the store was that of the main process, which tells when it fails
            return lost or is_main_process()
    if world() is not None and not is_main_process():
        time.sleep(_SECONDS)
    return True


def _store() -> Any:
    """Return what the processes meet by, once they have met; torch has no public name for it."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    return distributed.distributed_c10d._get_default_store()
