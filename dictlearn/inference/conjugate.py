"""A few steps towards the least squares of given supports, where all the way would be dear.

Legend: n rows, m atoms, d width, k kept codes per row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.errors import whole_number
from dictlearn.inference.engine import pick, use_threads
from dictlearn.inference.layers import as_pairs
from dictlearn.inference.refit import refit
from dictlearn.kernels import reconstruct


@torch.no_grad()
def approach(x: Tensor, codes: Codes, atoms: Tensor, steps: int, engine: str = "auto") -> Codes:
    """Return codes nearer to `min |x - a Phi|^2` on their supports, none negative.

    Conjugate gradients (Hestenes & Stiefel 1952) from the codes as they are: after a step the
    error is the least that any multiple of the slope reaches, after `k` it is the minimum. What
    has become negative is 0 in the end. A step costs about what a layer on k candidates costs.

    Args:
        x: `[n, d]`.
        codes: of the rows, none negative; zeros stay.
        atoms: `[m, d]`.
        steps: how many.
        engine: `auto`, `torch` or `compiled` (float32 on a CPU); see `pick`.

    Raises:
        InputError: the engine has no such name, or it is asked for and cannot run here.
    """
    pairs = as_pairs(codes)
    assert pairs is not None
    values, indices = pairs
    if pick(engine, x) and x.dtype == torch.float32:
        from dictlearn.inference.compiled.layers import conjugate

        use_threads()
        rows, table = x.detach().contiguous(), atoms.detach().contiguous()
        moved = values.detach().clone(memory_format=torch.contiguous_format)
        conjugate(rows.numpy(), table.numpy(), indices.contiguous().numpy(), moved.numpy(), steps)
        return codes._replace(values=moved)
    return codes._replace(values=_approached(x, values, indices, atoms, steps))


def whole_or_none(key: str, value: int | None) -> int | None:
    """Return an option that is a whole number or None; see `whole_number`."""
    return None if value is None else whole_number(key, value)


def refit_in(steps: int | None, x: Tensor, codes: Codes, atoms: Tensor, engine: str) -> Codes:
    """Return refitted codes: all the way by `refit`, or in some steps by `approach`."""
    if steps is None:
        return refit(x, codes, atoms)
    return approach(x, codes, atoms, steps, engine)


def _approached(x: Tensor, values: Tensor, indices: Tensor, atoms: Tensor, steps: int) -> Tensor:
    """Return the values; see `approach`."""
    active, tiny = values != 0, torch.finfo(x.dtype).tiny

    def decoded(some: Tensor) -> Tensor:
        return reconstruct(Codes(some, indices, len(atoms)), atoms)

    def slope(residual: Tensor) -> Tensor:
        return (residual @ atoms.T).gather(1, indices) * active

    residual = x - decoded(values)
    direction = slope(residual)
    size = direction.square().sum(1, keepdim=True)
    least = torch.finfo(x.dtype).eps ** 1.5 * size
    for _ in range(steps):
        change = decoded(direction)
        length = size / change.square().sum(1, keepdim=True).clamp_min(tiny)
        # What is left of a slope that has come to its end is rounding errors.
        length = torch.where(size > least, length, 0.0)
        values, residual = values + length * direction, residual - length * change
        descent, before = slope(residual), size
        size = descent.square().sum(1, keepdim=True)
        direction = descent + torch.where(before > least, size / before, 0.0) * direction
    return values.clamp_min(0)
