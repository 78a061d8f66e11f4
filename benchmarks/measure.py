"""Clocks and memory, the same for us and for the peers' workers: nothing but numpy is needed."""

from __future__ import annotations

import contextlib
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Clock:
    """CPU seconds of this process and wall seconds since it was made.

    Args:
        device: on ``cuda`` the clock is read when the device is done.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self._cpu, self._wall = self._now()

    def _now(self) -> tuple[float, float]:
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()
        return time.process_time(), time.perf_counter()

    def read(self) -> dict[str, float]:
        """Return both."""
        cpu, wall = self._now()
        return {"cpu": cpu - self._cpu, "wall": wall - self._wall}


def peak_bytes(device: str = "cpu") -> int:
    """Return the largest memory this process has had: resident, or on the device."""
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if status.exists():
        lines = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        if lines:
            return int(lines[0].split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident_bytes(device: str = "cpu") -> int:
    """Return the memory of now, and let the peak start anew where the system can do that."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    status = Path("/proc/self/statm")
    if not status.exists():
        return peak_bytes()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return int(status.read_text().split()[1]) * resource.getpagesize()


def training_order(n: int, n_vectors: int, seed: int) -> NDArray[Any]:
    """Return row numbers `[n_vectors]`: whole passes over `n` rows, each in an order of its own."""
    draws = np.random.default_rng(seed)
    passes = [draws.permutation(n) for _ in range(-(-n_vectors // n))]
    return np.concatenate(passes)[:n_vectors]
