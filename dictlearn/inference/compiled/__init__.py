"""Loops over rows, compiled for the CPU by numba; imported only where they run."""

from __future__ import annotations

from collections.abc import Callable
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
        jitted: F = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder for the cache
        jitted = numba.njit(**options)(function)
    return jitted
