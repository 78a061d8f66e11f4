"""Decode: every row's weighted sum of the few table rows that its codes name.

Legend: n rows, m table rows, d width, k codes per row.
"""

# ruff: noqa: ANN001, ANN202
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import torch
import triton
import triton.language as tl
from torch import Tensor

from dictlearn.kernels.triton.sizes import code_block, pieces, precision, width_block


@triton.jit
def _combine(
    values,
    indices,
    table,
    out,
    width,
    k,
    block_k: tl.constexpr,
    block_d: tl.constexpr,
    number: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * block_d + tl.arange(0, block_d)
    inside = columns < width
    total = tl.zeros([block_d], dtype=number)
    for start in range(0, k, block_k):
        places = start + tl.arange(0, block_k)
        held = places < k
        value = tl.load(values + row * k + places, mask=held, other=0.0).to(number)
        index = tl.load(indices + row * k + places, mask=held, other=0).to(tl.int64)
        # A code that is zero (padding) reads nothing.
        read = (value != 0.0)[:, None] & inside[None, :]
        gathered = tl.load(table + index[:, None] * width + columns[None, :], mask=read, other=0.0)
        total += tl.sum(value[:, None] * gathered.to(number), axis=0)
    tl.store(out + row * width + columns, total.to(out.dtype.element_ty), mask=inside)


def combine(values: Tensor, indices: Tensor, table: Tensor) -> Tensor:
    """Return `sum_j values[i, j] * table[indices[i, j]]`, summed in float32 (float64: float64).

    One program per row and block of columns; it gathers 8 table rows at a time, so nothing of
    size `[n, k, d]` or `[n, m]` exists.

    Args:
        values: `[n, k]`.
        indices: int64 `[n, k]`; an index may be repeated.
        table: `[m, d]`.

    Returns:
        `[n, d]` in the wider dtype of values and table.
    """
    values, indices, table = values.contiguous(), indices.contiguous(), table.contiguous()
    (n, k), width = values.shape, table.shape[1]
    out = table.new_empty(n, width, dtype=torch.promote_types(values.dtype, table.dtype))
    block = width_block(width)
    _combine[(n, pieces(width, block))](
        values, indices, table, out, width, k, code_block(k), block, precision(values, table)
    )
    return out
