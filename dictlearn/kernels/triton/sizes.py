"""Block sizes: few and fixed, so that no shape is searched for and few variants are compiled.

Legend: n rows, m atoms, d width, k codes per row.
"""

import triton.language as tl
from torch import Tensor, float64

CODES = 8
"""Codes that one program holds at a time: 8 gathered rows of 256 floats are 16 registers a thread
at 4 warps, enough loads in flight to hide the latency of a gather."""


def power_of_two(size: int) -> int:
    """Return the smallest power of two that is at least `size`."""
    return 1 << max(size - 1, 0).bit_length()


def pieces(size: int, block: int) -> int:
    """Return how many blocks cover `size` places."""
    return -(-size // block)


def width_block(width: int) -> int:
    """Return the columns of one program: the largest of 256, 128, 64 that divides the width.

    A width that none divides (100, 6) gets one padded block, or padded blocks of 256.
    """
    for block in (256, 128, 64):
        if width % block == 0:
            return block
    return min(256, max(16, power_of_two(width)))


def code_block(k: int) -> int:
    """Return how many codes of a row one program holds at a time."""
    return min(CODES, power_of_two(k))


def precision(*tensors: Tensor) -> tl.dtype:
    """Return what sums are held in: float64 if any operand is, float32 otherwise."""
    return tl.float64 if any(tensor.dtype == float64 for tensor in tensors) else tl.float32
