"""Which of two equal paths runs: plain torch, or loops compiled for the CPU."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from dictlearn.errors import InputError, choice

ENGINES = ("auto", "torch", "compiled")


def pick(engine: str, x: Tensor) -> bool:
    """Return whether the compiled path runs for rows like `x`.

    ``auto`` takes it where it can run: tensors on a CPU, and numba is installed.

    Args:
        engine: ``auto``, ``torch`` or ``compiled``.
        x: the rows.

    Raises:
        InputError: the engine has no such name, or ``compiled`` cannot run here.
    """
    choice("inference.engine", engine, ENGINES)
    if engine == "torch":
        return False
    here = x.device.type == "cpu"
    if engine == "compiled" and not here:
        raise InputError(
            f"inference.engine=compiled runs on a CPU, and the hidden states are on {x.device}: "
            "set inference.engine=auto."
        )
    installed = available()
    if engine == "compiled" and not installed:
        raise InputError(
            "inference.engine=compiled needs numba, which is not installed: "
            "pip install transformer-factors[cpu], or set inference.engine=auto."
        )
    return here and installed


def available() -> bool:
    """Return whether numba is installed."""
    return importlib.util.find_spec("numba") is not None


def use_threads() -> None:
    """Let compiled loops use as many threads as torch does."""
    import numba

    most: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    numba.set_num_threads(max(1, min(torch.get_num_threads(), most)))


def has_fast_bfloat16(x: Tensor) -> bool:
    """Return whether products in bfloat16 are faster than those of float32 rows like `x`."""
    if x.dtype != torch.float32:
        return False
    if x.device.type == "cpu":
        # Elsewhere bfloat16 is emulated; the question has no public name in torch.
        supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
        return supported is not None and bool(supported())
    return x.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
