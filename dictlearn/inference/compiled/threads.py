"""Rows shared among threads.

Compiled functions release Python's lock. Plain threads rather than numba's own: those compile
three times as long, and two of them must not run at once.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

ROWS = 64
"""Rows of one task: enough to pay for its scratch memory, few enough to even the load."""


def over_rows(n: int, work: Callable[[int, int], object]) -> None:
    """Call `work(begin, end)` for all `n` rows, on as many threads as torch uses."""
    threads = min(torch.get_num_threads(), -(-n // ROWS))
    if threads <= 1:
        work(0, n)
        return
    begins = range(0, n, ROWS)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda begin: work(begin, min(n, begin + ROWS)), begins))
