"""Weight gradient: for every atom the sum of `value * row` over its codes; no float atomics.

The codes lie sorted by atom. An atom that fires on a tenth of the rows has a segment hundreds of
times longer than the median one, and a program per atom would wait for it. So the sorted list is
cut into pieces of 64 codes, and a piece that lies within one atom is summed by a program of its
own; then every atom adds its whole pieces and the codes before and after them (fewer than 128).
The order of every sum is fixed: the result is repeatable to the bit.

Legend: n rows, m atoms, d width, k codes per row, q pieces.
"""

# ruff: noqa: ANN001, ANN202
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import torch
import triton
import triton.language as tl
from torch import Tensor

from dictlearn.kernels.triton.by_atom import ByAtom
from dictlearn.kernels.triton.sizes import CODES, pieces, precision, width_block

PIECE = 64
"""Codes per piece."""


@triton.jit
def _add(total, begin, end, sources, weights, rows, width, columns, block: tl.constexpr):
    """Add `weight * row` of the codes from `begin` to `end`, a block of them at a time."""
    inside = columns < width
    for start in range(begin, end, block):
        codes = start + tl.arange(0, block)
        held = codes < end
        weight = tl.load(weights + codes, mask=held, other=0.0).to(total.dtype)
        source = tl.load(sources + codes, mask=held, other=0)
        read = (weight != 0.0)[:, None] & inside[None, :]
        gathered = tl.load(rows + source[:, None] * width + columns[None, :], mask=read, other=0.0)
        total += tl.sum(weight[:, None] * gathered.to(total.dtype), axis=0)
    return total


@triton.jit
def _sum_pieces(
    atoms,
    sources,
    weights,
    rows,
    partial,
    width,
    piece: tl.constexpr,
    block: tl.constexpr,
    block_d: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * block_d + tl.arange(0, block_d)
    begin = place * piece
    if tl.load(atoms + begin) == tl.load(atoms + begin + piece - 1):
        total = tl.zeros([block_d], dtype=partial.dtype.element_ty)
        total = _add(total, begin, begin + piece, sources, weights, rows, width, columns, block)
        tl.store(partial + place * width + columns, total, mask=columns < width)


@triton.jit
def _sum_atoms(
    offsets,
    sources,
    weights,
    rows,
    partial,
    out,
    width,
    piece: tl.constexpr,
    block: tl.constexpr,
    block_d: tl.constexpr,
):
    atom = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * block_d + tl.arange(0, block_d)
    inside = columns < width
    begin = tl.load(offsets + atom)
    end = tl.load(offsets + atom + 1)
    # The pieces from first to last lie wholly within this atom's codes; they may be none.
    first = (begin + piece - 1) // piece
    last = end // piece
    head = tl.minimum(end, first * piece)
    tail = tl.maximum(head, last * piece)
    total = tl.zeros([block_d], dtype=partial.dtype.element_ty)
    total = _add(total, begin, head, sources, weights, rows, width, columns, block)
    for start in range(first, last, block):
        places = start + tl.arange(0, block)
        read = (places < last)[:, None] & inside[None, :]
        sums = tl.load(partial + places[:, None] * width + columns[None, :], mask=read, other=0.0)
        total += tl.sum(sums, axis=0)
    total = _add(total, tail, end, sources, weights, rows, width, columns, block)
    tl.store(out + atom * width + columns, total.to(out.dtype.element_ty), mask=inside)


def outer_sum(codes: ByAtom, rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `codes^T rows`: for every atom the sum of `value * row`, zero where it has none.

    Args:
        codes: the codes sorted by atom.
        rows: `[n, d]`.
        dtype: of the result; sums are float32 (float64 if an operand is float64) in any case.

    Returns:
        `[m, d]`.
    """
    rows = rows.contiguous()
    width, n_atoms = rows.shape[1], len(codes.offsets) - 1
    double = precision(rows, codes.weights) == tl.float64
    n_pieces, block_d = len(codes.atoms) // PIECE, width_block(width)
    columns = pieces(width, block_d)
    partial = rows.new_empty(n_pieces, width, dtype=torch.float64 if double else torch.float32)
    out = rows.new_empty(n_atoms, width, dtype=dtype)
    if n_pieces:
        _sum_pieces[(n_pieces, columns)](
            codes.atoms,
            codes.sources,
            codes.weights,
            rows,
            partial,
            width,
            PIECE,
            CODES,
            block_d,
        )
    _sum_atoms[(n_atoms, columns)](
        codes.offsets,
        codes.sources,
        codes.weights,
        rows,
        partial,
        out,
        width,
        PIECE,
        CODES,
        block_d,
    )
    return out
