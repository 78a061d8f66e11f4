"""Loops over rows, compiled for the CPU by numba; imported only where they run."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F, *, parallel: bool = False) -> F:
    """Return the function as machine code, kept on disk where a folder can be written.

    Sums may be taken in another order and products fused into them; the rest of `fastmath` was
    measured to gain nothing. With `parallel`, loops over `numba.prange` share the threads.
    """
    options: dict[str, Any] = {
        "parallel": parallel,
        "fastmath": {"reassoc", "contract"},
        "nogil": True,
    }
    try:
        jitted: Any = numba.njit(cache=True, **options)(function)
        _forget_stale(jitted.stats.cache_path, Path(function.__code__.co_filename).parent)
    except RuntimeError:  # no folder for the cache
        jitted = numba.njit(**options)(function)
    kept: F = jitted
    return kept


@functools.cache
def _forget_stale(cache: str, sources: Path) -> None:
    """Remove what was compiled before any of the sources changed.

    numba looks at the file of a function alone, and code of the others is part of it.
    """
    changed = max(source.stat().st_mtime for source in sources.glob("*.py"))
    for index in Path(cache).glob("*.nbi"):
        with contextlib.suppress(OSError):
            if index.stat().st_mtime < changed:
                index.unlink()
