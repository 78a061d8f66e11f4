"""Unrolled layers one after the other: on dense codes, or on values and indices only.

Legend: n rows, m atoms, d width, k kept codes per row, T layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.kernels import reconstruct
from dictlearn.mesh import ALONE, Processes
from dictlearn.prox import Priced, Prox

Pairs = tuple[Tensor, Tensor]
"""Values and their indices, both `[n, p]`."""


class Layer(NamedTuple):
    """What one layer computes with: `a <- sparsify(y + step W (x - y B), threshold)`.

    Attributes:
        step: 0-dimensional.
        weight: the analysis matrix `W: [m, d]`.
        synthesis: `B: [m, d]`, usually the atoms.
        threshold: `[m]`, or `[n, m]` where rows have prices of their own.
    """

    step: Tensor
    weight: Tensor
    synthesis: Tensor
    threshold: Tensor


Dense = Callable[[int, Tensor, Layer], Codes]
"""Makes codes of a layer's number, its point `[n, m]` and the layer."""

Sparse = Callable[[int, Tensor, Layer, Pairs | None], Codes]
"""Makes k-sparse codes of a layer's number, the residual times the step, the layer and a start."""


def dense_layers(
    x: Tensor,
    layers: Sequence[Layer],
    betas: Sequence[Tensor],
    initial: Codes | None,
    make: Dense,
    shards: Processes = ALONE,
) -> Codes:
    """Run the layers on dense codes.

    Args:
        x: `[n, d]`.
        layers: T of them.
        betas: momentum between layers, T - 1 numbers, or none.
        initial: codes to start from, zeros if None.
        make: the sparsity.
        shards: the processes that hold the atoms together; layers and codes are of this one's.
    """
    start = None if initial is None else initial.dense()
    before = start
    codes = make(0, _point(x, start, layers[0], shards), layers[0])
    for t, layer in enumerate(layers[1:], start=1):
        start = codes.dense()
        if betas:
            difference = start if before is None else start - before
            beta = shards.spread(betas[t - 1])
            before, start = start, torch.addcmul(start, beta, difference)
        codes = make(t, _point(x, start, layer, shards), layer)
    return codes


def _point(x: Tensor, start: Tensor | None, layer: Layer, shards: Processes) -> Tensor:
    residual = x if start is None else x - shards.sum(start @ layer.synthesis)
    change = shards.spread(residual * layer.step) @ layer.weight.T
    return change if start is None else start + change


def priced(prox: Prox, x: Tensor, shards: Processes = ALONE) -> Dense:
    """Return the sparsity of layers whose codes have a price, a ridge among it."""
    ridge = prox.penalty(x).ridge if isinstance(prox, Priced) else 0.0

    def make(_: int, point: Tensor, layer: Layer) -> Codes:
        codes = prox(point, layer.threshold)
        if ridge == 0:
            return codes
        return codes._replace(values=codes.values / (1 + shards.spread(layer.step) * ridge))

    return make


def sparse_layers(
    x: Tensor,
    layers: Sequence[Layer],
    betas: Sequence[Tensor],
    initial: Codes | None,
    make: Sparse,
    shards: Processes = ALONE,
) -> Codes:
    """Run the layers on values and indices: dense are at most one layer's pre-activations.

    The residual is linear in the codes, so that momentum combines residuals already at hand, as
    long as the layers share their synthesis. See `dense_layers` for the arguments.
    """
    start = as_pairs(initial)
    residual = x
    if initial is not None:
        residual = x - shards.sum(reconstruct(initial, layers[0].synthesis))
    before = (start, residual)
    codes = make(0, shards.spread(residual * layers[0].step), layers[0], start)
    for t, layer in enumerate(layers[1:], start=1):
        start = as_pairs(codes)
        residual = x - shards.sum(reconstruct(codes, layer.synthesis))
        if betas:
            here = (start, residual)
            start = _extrapolated(start, before[0], shards.spread(betas[t - 1]))
            residual = residual + betas[t - 1] * (residual - before[1])
            before = here
        codes = make(t, shards.spread(residual * layer.step), layer, start)
    return codes


def as_pairs(codes: Codes | None) -> Pairs | None:
    """Return values and indices `[n, p]`, or None for zero codes."""
    if codes is None:
        return None
    if codes.indices is not None:
        return codes.values, codes.indices
    every = torch.arange(codes.n_atoms, device=codes.values.device)
    return codes.values, every.expand(len(codes.values), -1)


def _extrapolated(pairs: Pairs | None, before: Pairs | None, beta: Tensor) -> Pairs | None:
    """Return `a + beta (a - a_before)`, repeated indices standing for sums."""
    if pairs is None:
        return None
    values, indices = (1 + beta) * pairs[0], pairs[1]
    if before is None:
        return values, indices
    return torch.cat([values, -beta * before[0]], 1), torch.cat([indices, before[1]], 1)
