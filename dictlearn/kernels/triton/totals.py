"""Threshold gradient: for every atom the sum of its codes.

Legend: n rows, m atoms, k codes per row.
"""

# ruff: noqa: ANN001, ANN202
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import torch
import triton
import triton.language as tl
from torch import Tensor

from dictlearn.kernels.triton.by_atom import ByAtom
from dictlearn.kernels.triton.sizes import precision

BLOCK = 64
"""Codes that one warp adds at a time; an atom that fires on all of 4096 rows takes 64 steps."""


@triton.jit
def _totals(offsets, weights, out, block: tl.constexpr, number: tl.constexpr):
    atom = tl.program_id(0).to(tl.int64)
    begin = tl.load(offsets + atom)
    end = tl.load(offsets + atom + 1)
    total = tl.zeros([block], dtype=number)
    for start in range(begin, end, block):
        codes = start + tl.arange(0, block)
        total += tl.load(weights + codes, mask=codes < end, other=0.0).to(number)
    tl.store(out + atom, tl.sum(total, axis=0).to(out.dtype.element_ty))


def totals(codes: ByAtom, dtype: torch.dtype) -> Tensor:
    """Return `[m]`: for every atom the sum of its values, zero where it has none."""
    n_atoms = len(codes.offsets) - 1
    out = codes.weights.new_empty(n_atoms, dtype=dtype)
    _totals[(n_atoms,)](
        codes.offsets, codes.weights, out, BLOCK, precision(codes.weights), num_warps=1
    )
    return out
