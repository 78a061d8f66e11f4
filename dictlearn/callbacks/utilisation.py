"""How much of what a GPU can multiply a run makes use of.

Legend: d width.
"""

from __future__ import annotations

import time

import torch

SIDE = 8192
REPEATS = 5


def model_flops(width: int, blocks: int, tokens: float, looks: float) -> float:
    """Return the floating-point operations that the model itself needs for so many tokens.

    `24 d^2` for a token in a block of the transformer (Kaplan et al. 2020, section 2.1, without
    the attention scores, which are few in short sequences), and `6 d` for every look of a vector
    at an atom, forward and backward. What is computed again, or saved by sparsity, does not count.

    Args:
        width: d.
        blocks: of the transformer up to the last tapped one, 0 where hidden states are cached.
        tokens: tokens extracted.
        looks: vectors trained on, times the atoms that learned from them.
    """
    return 24.0 * width**2 * blocks * tokens + 6.0 * width * looks


def multiplication_ceiling(device: torch.device) -> float:
    """Return the floating-point operations a second of a large bfloat16 product, measured here.

    0 where the device has no memory left for it.
    """
    try:
        return _measured(device)
    except RuntimeError:  # no memory left, or no such product on an old GPU
        return 0.0


def _measured(device: torch.device) -> float:
    draws = torch.Generator(device)  # not the run's own, whose draws are to be its own
    a = torch.randn(SIDE, SIDE, dtype=torch.bfloat16, device=device, generator=draws)
    (a @ a).sum()  # the first product also chooses the kernel
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    for _ in range(REPEATS):
        a @ a
    torch.cuda.synchronize(device)
    return REPEATS * 2.0 * SIDE**3 / (time.perf_counter() - began)
