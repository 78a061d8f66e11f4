"""What a user did wrong, told in one sentence, and the checks that say it."""

from __future__ import annotations

import difflib
import errno
import math
from collections.abc import Iterable, Mapping
from typing import Any

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


class InputError(ValueError):
    """A user's mistake: one sentence with what is wrong, where, and what to change.

    The command line prints it without a stack trace and exits with code 2.
    """


class Stopped(Exception):  # noqa: N818 - it is not an error
    """The run was asked to stop and can go on later: not an error, but not the end either.

    The command line says so and exits with code 75 (``EX_TEMPFAIL``: try again).

    Args:
        message: what stopped it, and where.
        requeue: whether a scheduler is to be asked to start it again.
    """

    def __init__(self, message: str, requeue: bool = False) -> None:
        super().__init__(message)
        self.requeue = requeue


class Lost(Exception):  # noqa: N818 - nothing is wrong with this process
    """Another process of the run has ended, or does not answer: told in one sentence, exit code 1.

    Whoever is the reason tells it.
    """


def told_of_disk(error: BaseException) -> str | None:
    """Return a sentence about a place that cannot be written; None if it is another error."""
    if isinstance(error, PermissionError | NotADirectoryError | FileExistsError):
        return f"{error.filename} cannot be written: choose another hydra.run.dir=DIR."
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        place = error.filename or "A file"
        return f"{place} cannot be written ({error.strerror}): make room on that disk."
    return None


def one_line(error: object) -> str:
    """Return what an error, or another object, says, on one line."""
    return " ".join(str(error).split())


def nearest(name: str, names: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the closest of `names`, or an empty string."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" Did you mean '{found[0]}'?" if found else ""


def choice(key: str, value: object, options: Iterable[str]) -> str:
    """Return `value` if it is one of `options`.

    Raises:
        InputError: it is not; the message lists the options and the nearest one.
    """
    names = list(options)
    if value not in names:
        raise InputError(
            f"{key}={value} is not one of {', '.join(names)}.{nearest(str(value), names)}"
        )
    return str(value)


def flag(key: str, value: object) -> bool:
    """Return `value` if it is true or false; ``no`` and ``off`` are words, not booleans.

    Raises:
        InputError: it is anything else.
    """
    if not isinstance(value, bool):
        raise InputError(f"{key}={value} must be true or false.")
    return value


def whole_number(key: str, value: object, minimum: int = 1) -> int:
    """Return `value` as an integer of at least `minimum` (``1e6`` counts as whole).

    Raises:
        InputError: it is not a whole number, or it is too small.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise InputError(f"{key} must be a whole number, not {value!r}.")
    if value < minimum:
        raise InputError(f"{key}={value} must be at least {minimum}.")
    return int(value)


def number(key: str, value: object, minimum: float = -math.inf, maximum: float = math.inf) -> float:
    """Return `value` as a finite float between `minimum` and `maximum`.

    Raises:
        InputError: it is not a number, not finite, or outside the bounds.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{key} must be a finite number, not {value!r}.")
    if not minimum <= value <= maximum:
        bounds = f"at least {minimum}" if maximum == math.inf else f"in [{minimum}, {maximum}]"
        raise InputError(f"{key}={value} must be {bounds}.")
    return float(value)


def check_shapes(saved: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    """Check that the tensors of a checkpoint, by name, have the shapes that this run wants.

    Raises:
        InputError: they do not.
    """
    for key in {**saved, **mine}:
        there, here = (list(of[key].shape) if key in of else "nothing" for of in (saved, mine))
        if there != here:
            raise InputError(
                f"The checkpoint has {there} for {key}, and this run has {here}: go on with the "
                "options that the run began with."
            )
