"""Exact top-k of every row: the k-th largest score is built bit by bit in registers.

A program reads its scores once, maps them to integers of the same order, and finds the largest
integer that at least k of them reach: one count per bit, 16 for bfloat16 and 32 for float32.
What lies above is kept, and of what equals it the first ones until there are k. Rows longer than
4096 are cut into segments of that size at most: the k best of every segment hold the k best of
the row, and are searched in the same way.

Other designs: `torch.topk` (a radix search too, but through memory, about one pass a digit);
maxima of groups first (`selection.top_indices` on a CPU; it needs the scores twice and two more
searches); selection in the epilogue of an own matrix product (saves writing 16 bits a score, and
gives up the vendor's matrix product, which is most of the time).

Legend: n rows, m entries per row, k wanted, s segments.
"""

# ruff: noqa: ANN001, ANN202
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import torch
import triton
import triton.language as tl
from torch import Tensor

from dictlearn.kernels.triton.sizes import pieces, power_of_two

LONGEST = 4096
"""Scores in the registers of one program: 16 a thread at 8 warps, so that two or three programs
share a multiprocessor and hide the latency of each other's counts."""


@triton.jit
def _select(
    scores, out, m, segment, k, bits: tl.constexpr, block: tl.constexpr, keep: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    places = tl.arange(0, block)
    columns = part * segment + places
    inside = (places < segment) & (columns < m)
    score = tl.load(scores + row * m + columns, mask=inside, other=0.0).to(tl.float32)
    # Integers of the same order: the lower 31 bits of a negative float are flipped.
    bare = score.to(tl.int32, bitcast=True)
    key = (bare ^ ((bare >> 31) & 0x7FFFFFFF)) & keep
    key = tl.where(inside, key, -2147483648)
    found = tl.where(tl.sum((key >= 0).to(tl.int32), axis=0) >= k, 0, -2147483648)
    for step in range(1, bits):
        trial = found | (1 << (31 - step))
        found = tl.where(tl.sum((key >= trial).to(tl.int32), axis=0) >= k, trial, found)
    above = (key > found).to(tl.int32)
    equal = ((key == found) & inside).to(tl.int32)
    # One scan numbers both kinds: at most 4096 of each, 16 bits are enough.
    number = tl.cumsum(above + (equal << 16), axis=0)
    place = tl.where(above != 0, number & 0xFFFF, tl.sum(above, axis=0) + (number >> 16)) - 1
    chosen = ((above + equal) != 0) & (place < k)
    base = out + (row * tl.num_programs(1) + part) * k
    tl.store(base + place, columns.to(tl.int64), mask=chosen)


def select(scores: Tensor, k: int) -> Tensor:
    """Return the places of the `k` largest entries of every row, in no order.

    Of equal entries the first are taken. Scores that are no bfloat16, float16 or float32, and k
    that are large against the row, go to `torch.topk`.

    Args:
        scores: `[n, m]`.
        k: how many, at most m.

    Returns:
        int64 `[n, k]`, distinct within a row.
    """
    n, m = scores.shape
    parts = pieces(m, LONGEST)
    segment = pieces(m, parts)
    short = min(segment, m - (parts - 1) * segment)
    if scores.dtype == torch.float64 or k > short or (parts > 1 and 2 * parts * k > m):
        return scores.topk(k, dim=1, sorted=False).indices
    scores = scores.contiguous()
    out = torch.empty(n, parts * k, dtype=torch.int64, device=scores.device)
    block = max(32, power_of_two(segment))
    bits = 16 if scores.dtype == torch.bfloat16 else 32
    _select[(n, parts)](
        scores,
        out,
        m,
        segment,
        k,
        bits,
        block,
        -(1 << (32 - bits)),
        num_warps=min(8, max(1, block // 512)),
    )
    if parts == 1:
        return out
    return out.gather(1, select(scores.gather(1, out), k))
