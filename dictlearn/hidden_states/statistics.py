"""Mean and scale of every layer, and the normalisation made from them.

Layers of one transformer differ in mean and length of their vectors; one dictionary over all of
them sees them on one scale. Legend: L tapped layers, t tokens, d width, n rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dictlearn.errors import InputError, choice
from dictlearn.hidden_states.extraction import Extractor, Integers
from dictlearn.hidden_states.options import NORMALIZATIONS


class Statistics(NamedTuple):
    """What was measured of every tapped layer, in the order of the layers, float32 on the CPU.

    Attributes:
        mean: mean vector, `[L, d]`.
        norm: mean Euclidean norm, `[L]`.
        scale: root of the mean squared norm of the vectors (of the centred vectors, if the
            normalisation centres), `[L]`.
    """

    mean: Tensor
    norm: Tensor
    scale: Tensor


class Sums(NamedTuple):
    """Sums over tokens, from which the statistics follow; those of parts of a text add up.

    Attributes:
        n: number of tokens, int64.
        total: of the vectors, float64 `[L, d]`.
        norms: of their Euclidean norms, float64 `[L]`.
        squares: of their squared norms, float64 `[L]`.
    """

    n: Tensor
    total: Tensor
    norms: Tensor
    squares: Tensor

    @classmethod
    def none(cls, n_layers: int, width: int) -> Sums:
        """Return the sums over no token."""
        zeros = torch.zeros(n_layers, width, dtype=torch.float64)
        return cls(torch.tensor(0), zeros, zeros.sum(1), zeros.sum(1))

    @classmethod
    def of(cls, vectors: Tensor) -> Sums:
        """Return the sums over `vectors: [L, t, d]`."""
        norm = vectors.norm(dim=-1, dtype=torch.float32).double()
        total = vectors.sum(1, dtype=torch.float64).cpu()
        n = torch.tensor(vectors.shape[1])
        return cls(n, total, norm.sum(1).cpu(), norm.square().sum(1).cpu())

    def plus(self, other: Sums) -> Sums:
        """Return the sums over the tokens of both."""
        return Sums(*(a + b for a, b in zip(self, other, strict=True)))

    def statistics(self, kind: str) -> Statistics:
        """Return mean, norm and scale for a kind of normalisation."""
        mean, square = self.total / self.n, self.squares / self.n
        if kind.startswith("center"):
            square = square - mean.square().sum(-1)
        norm, scale = (self.norms / self.n).float(), square.clamp_min(0).sqrt().float()
        return Statistics(mean.float(), norm, scale)


def measure(extractor: Extractor, order: Integers, n_tokens: int, kind: str) -> Statistics:
    """Measure the statistics on the first token blocks of `order`, in float64.

    Args:
        extractor: makes the hidden states of token blocks.
        order: numbers of token blocks, read until `n_tokens` tokens or the end.
        n_tokens: tokens to read, at least.
        kind: kind of the normalisation, which says whether `scale` is of centred vectors.
    """
    size = extractor.frame.sequences
    sums = Sums.of(extractor.extract(order[:size]).vectors)
    for first in range(size, len(order), size):
        if int(sums.n) >= n_tokens:
            break
        sums = sums.plus(Sums.of(extractor.extract(order[first : first + size]).vectors))
    return sums.statistics(kind)


class Normalization(nn.Module):
    """Per-layer normalisation of hidden states, and its inverse.

    `x = (vectors - mean[layer]) / scale[layer]`, without what `kind` leaves out: ``none``,
    ``center``, ``unit_scale`` (E |x|^2 = 1 in every layer), ``center_unit_scale``.

    Args:
        kind: one of the four.
        layers: tapped indices of `hidden_states`, `[L]`.
        mean: mean of every layer, `[L, d]`.
        scale: root mean squared norm of every layer, `[L]`.

    Raises:
        InputError: unknown kind, or a layer whose vectors are all alike cannot be scaled.
    """

    layers: Tensor
    mean: Tensor
    scale: Tensor
    _row: Tensor

    def __init__(
        self, kind: str, layers: Sequence[int] | Tensor, mean: Tensor, scale: Tensor
    ) -> None:
        super().__init__()
        self.kind = choice("hidden_states.normalization", kind, NORMALIZATIONS)
        layers = torch.as_tensor(layers, dtype=torch.int64)
        if self._scales and not bool((scale > 0).all()):
            layer = int(layers[(scale <= 0).nonzero()[0, 0]])
            raise InputError(
                f"hidden_states.normalization={kind} cannot scale layer {layer}, whose vectors are"
                " all alike: leave it out of hidden_states.layers."
            )
        # a layer that is not tapped points beyond the table, so that it fails instead of passing
        row = torch.full((int(layers.max()) + 1,), len(layers))
        row[layers] = torch.arange(len(layers))
        self.register_buffer("layers", layers)
        self.register_buffer("mean", mean.float())
        self.register_buffer("scale", scale.float())
        self.register_buffer("_row", row, persistent=False)

    @property
    def _centers(self) -> bool:
        return self.kind.startswith("center")

    @property
    def _scales(self) -> bool:
        return self.kind.endswith("unit_scale")

    def row(self, layer: Tensor) -> Tensor:
        """Return which tapped layer, counted from 0 in their order, every `layer: [n]` is."""
        return self._row[layer]

    def forward(self, vectors: Tensor, layer: Tensor) -> Tensor:
        """Return `x: [n, d]` of hidden states `vectors: [n, d]` of the layers `layer: [n]`."""
        if self._centers:
            vectors = vectors - self.mean[self._row[layer]]
        if self._scales:
            vectors = vectors / self.scale[self._row[layer]][:, None]
        return vectors

    def invert(self, x: Tensor, layer: Tensor) -> Tensor:
        """Return the hidden states `[n, d]` whose normalised form is `x: [n, d]`."""
        if self._scales:
            x = x * self.scale[self._row[layer]][:, None]
        if self._centers:
            x = x + self.mean[self._row[layer]]
        return x

    def pooled(self, vectors: Tensor) -> Tensor:
        """Return `[n, d]` normalised by the mean statistics of all layers, of no known layer."""
        if self._centers:
            vectors = vectors - self.mean.mean(0)
        return vectors / self.scale.mean() if self._scales else vectors

    def invert_pooled(self, x: Tensor) -> Tensor:
        """Return the hidden states `[n, d]` that `pooled` made `x` from."""
        if self._scales:
            x = x * self.scale.mean()
        return x + self.mean.mean(0) if self._centers else x
