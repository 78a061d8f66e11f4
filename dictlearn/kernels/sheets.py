"""The one dense pass of a layer, a few rows at a time, in float32 or in bfloat16.

The whole `[n, m]` never exists: it would be fresh memory, written once and read once, and at
n_atoms=24,576 its copies are most of what a training step needs.

Legend: n rows, m atoms, d width, p codes that a layer starts from.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dictlearn.errors import choice

SHEET_BYTES = 4 * 2**20
"""Of one sheet of scores; 4 to 32 MiB measured alike, so the least memory is taken."""

FEWEST_ROWS = 256
"""Of one sheet, however many atoms: matrix products of fewer rows are slower."""

SELECTIONS = ("exact", "fast", "auto")


class Layer(NamedTuple):
    """What the scores `a_previous + residual weight^T - threshold` are made of.

    Attributes:
        residual: `[n, d]`.
        weight: `[m, d]`.
        threshold: `[m]`.
        values: of the codes that the layer starts from, `[n, p]`, or None.
        indices: their atoms; repeated ones stand for sums.
    """

    residual: Tensor
    weight: Tensor
    threshold: Tensor
    values: Tensor | None
    indices: Tensor | None

    @property
    def n_atoms(self) -> int:
        """`m`."""
        return len(self.weight)

    def rows(self, chosen: Tensor) -> Layer:
        """Return the layer of some rows alone."""
        start = (None, None)
        if self.values is not None and self.indices is not None:
            start = self.values[chosen], self.indices[chosen]  # type: ignore[assignment]
        return Layer(self.residual[chosen], self.weight, self.threshold, *start)


def is_fast(selection: str, weight: Tensor) -> bool:
    """Return whether codes are chosen by scores in bfloat16.

    Args:
        selection: `exact` never, `fast` always (float32 only), `auto` where the processor
            multiplies bfloat16 matrices.
        weight: `[m, d]`.

    Raises:
        InputError: `selection` is none of these.
    """
    choice("inference.selection", selection, SELECTIONS)
    if selection == "exact" or weight.dtype != torch.float32 or weight.device.type != "cpu":
        return False
    return selection == "fast" or _multiplies_bfloat16()


@functools.cache
def _multiplies_bfloat16() -> bool:
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    asked = (getattr(torch.cpu, probe, None) for probe in probes)
    onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(onednn) and any(ask is not None and ask() for ask in asked)


def sheets(layer: Layer, fast: bool) -> Iterator[tuple[slice, Tensor]]:
    """Yield the scores of a few rows after the other, in memory that is used again.

    Args:
        layer: what the scores are made of.
        fast: whether in bfloat16, else in the dtype of the weights.

    Yields:
        The rows, and their scores `[rows, m]`.
    """
    n, m = len(layer.residual), layer.n_atoms
    right = _half(layer) if fast else layer.weight
    step = max(FEWEST_ROWS, SHEET_BYTES // (m * right.element_size()))
    buffer = right.new_empty(min(n, step), m)
    left = right.new_full((min(n, step), right.shape[1]), -1.0) if fast else layer.residual
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        scores = buffer[: rows.stop - start]
        if fast:
            left[: len(scores), : layer.residual.shape[1]] = layer.residual[rows]
            torch.mm(left[: len(scores)], right.T, out=scores)
        else:
            torch.addmm(layer.threshold, left[rows], right.T, beta=-1, out=scores)
        if layer.values is not None and layer.indices is not None:
            scores.scatter_add_(1, layer.indices[rows], layer.values[rows].to(scores.dtype))
        yield rows, scores


def _half(layer: Layer) -> Tensor:
    """Return what rows `[x, -1, -1]` are multiplied with, `[m, d + 2]`, for their scores.

    The threshold takes part as two columns more, its upper and its lower bits: rounded to one
    bfloat16 it would shift whole atoms.
    """
    d, upper = layer.residual.shape[1], layer.threshold.bfloat16()
    right = upper.new_empty(layer.n_atoms, d + 2)
    right[:, :d], right[:, d], right[:, d + 1] = layer.weight, upper, layer.threshold - upper
    return right
