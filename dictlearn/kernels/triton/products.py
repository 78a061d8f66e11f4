"""Sampled products: every row against the few table rows that are asked for.

Legend: n rows, m table rows, d width, k wanted per row.
"""

# ruff: noqa: ANN001, ANN202
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import torch
import triton
import triton.language as tl
from torch import Tensor

from dictlearn.kernels.triton.sizes import code_block, pieces, precision, width_block


@triton.jit
def _products(
    rows,
    table,
    indices,
    out,
    width,
    k,
    block_k: tl.constexpr,
    block_d: tl.constexpr,
    number: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    places = tl.program_id(1) * block_k + tl.arange(0, block_k)
    held = places < k
    index = tl.load(indices + row * k + places, mask=held, other=0).to(tl.int64)
    total = tl.zeros([block_k, block_d], dtype=number)
    for start in range(0, width, block_d):
        columns = start + tl.arange(0, block_d)
        inside = columns < width
        one = tl.load(rows + row * width + columns, mask=inside, other=0.0).to(number)
        read = held[:, None] & inside[None, :]
        many = tl.load(table + index[:, None] * width + columns[None, :], mask=read, other=0.0)
        total += one[None, :] * many.to(number)
    product = tl.sum(total, axis=1)
    tl.store(out + row * k + places, product.to(out.dtype.element_ty), mask=held)


def products(rows: Tensor, table: Tensor, indices: Tensor) -> Tensor:
    """Return `<rows[i], table[indices[i, j]]>` without the other `n (m - k)` products.

    One program per row and 8 wanted table rows; the sum over the width is folded once, at the end.

    Args:
        rows: `[n, d]`.
        table: `[m, d]`.
        indices: int64 `[n, k]`.

    Returns:
        `[n, k]`, float32 (float64 if an operand is float64).
    """
    rows, table, indices = rows.contiguous(), table.contiguous(), indices.contiguous()
    (n, k), width = indices.shape, table.shape[1]
    number = precision(rows, table)
    out = rows.new_empty(n, k, dtype=torch.float64 if number == tl.float64 else torch.float32)
    block_k, block_d = code_block(k), width_block(width)
    _products[(n, pieces(k, block_k))](
        rows, table, indices, out, width, k, block_k, block_d, number
    )
    return out
