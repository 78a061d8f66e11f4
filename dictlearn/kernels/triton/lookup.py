"""Read codes at other places: what value a row's code has at the atoms that are asked for.

Legend: n rows, k codes per row, p wanted per row.
"""

# ruff: noqa: ANN001, ANN202
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import triton
import triton.language as tl
from torch import Tensor

from dictlearn.kernels.triton.sizes import pieces, power_of_two, precision

BLOCK = 32
"""Codes and wanted places that meet at a time: 1024 comparisons a step."""


@triton.jit
def _lookup(
    values,
    indices,
    wanted,
    out,
    k,
    p,
    block_k: tl.constexpr,
    block_p: tl.constexpr,
    number: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    places = tl.program_id(1) * block_p + tl.arange(0, block_p)
    asked = places < p
    want = tl.load(wanted + row * p + places, mask=asked, other=-1)
    total = tl.zeros([block_p], dtype=number)
    for start in range(0, k, block_k):
        codes = start + tl.arange(0, block_k)
        held = codes < k
        index = tl.load(indices + row * k + codes, mask=held, other=-2)
        value = tl.load(values + row * k + codes, mask=held, other=0.0).to(number)
        same = want[:, None] == index[None, :]
        total += tl.sum(tl.where(same, value[None, :], 0.0), axis=1)
    tl.store(out + row * p + places, total.to(out.dtype.element_ty), mask=asked)


def lookup(values: Tensor, indices: Tensor, wanted: Tensor) -> Tensor:
    """Return the codes at other places: `sum_j values[i, j] * (indices[i, j] == wanted[i, l])`.

    All pairs of a row are compared (k times p integers), so that no sheet `[n, m]` is written and
    read; repeated indices are summed, in their order.

    Args:
        values: codes `[n, k]`.
        indices: their atoms, int64 `[n, k]`.
        wanted: int64 `[n, p]`.

    Returns:
        `[n, p]`, in the dtype of the values.
    """
    values, indices, wanted = values.contiguous(), indices.contiguous(), wanted.contiguous()
    (n, k), p = indices.shape, wanted.shape[1]
    out = values.new_empty(n, p)
    block_k, block_p = min(BLOCK, power_of_two(k)), min(BLOCK, power_of_two(p))
    _lookup[(n, pieces(p, block_p))](
        values, indices, wanted, out, k, p, block_k, block_p, precision(values)
    )
    return out
