"""Sums per tapped layer, exact over batches and processes.

Legend: n rows, d width, L tapped layers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class LayerFVU(Metric):
    """Fraction of variance unexplained per layer: sum ||x - x_hat||^2 / sum ||x - mean||^2.

    The mean is that of the layer's own vectors seen by the metric (the held-out set), so a
    dictionary that returns the mean of every layer scores exactly 1. Sums are float64.

    Args:
        n_layers: L, the number of tapped layers.
        width: d.
    """

    n: Tensor
    total: Tensor
    square: Tensor
    residual: Tensor

    def __init__(self, n_layers: int, width: int) -> None:
        super().__init__()
        double = torch.float64
        self.add_state("n", torch.zeros(n_layers, dtype=double), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(n_layers, width, dtype=double), dist_reduce_fx="sum")
        self.add_state("square", torch.zeros(n_layers, dtype=double), dist_reduce_fx="sum")
        self.add_state("residual", torch.zeros(n_layers, dtype=double), dist_reduce_fx="sum")

    def update(self, x: Tensor, x_hat: Tensor, row: Tensor) -> None:
        """Add vectors `x: [n, d]`, reconstructions `x_hat: [n, d]`, of tapped layer `row: [n]`."""
        square = x.square().sum(-1, dtype=torch.float64)
        residual = (x - x_hat).square().sum(-1, dtype=torch.float64)
        self.n.index_add_(0, row, torch.ones_like(square))
        self.total.index_add_(0, row, x.double())
        self.square.index_add_(0, row, square)
        self.residual.index_add_(0, row, residual)

    def variance(self) -> Tensor:
        """Return sum ||x - mean||^2 per layer, `[L]`."""
        mean_energy = self.total.square().sum(-1) / self.n.clamp_min(1)
        return (self.square - mean_energy).clamp_min(torch.finfo(torch.float64).tiny)

    def compute(self) -> Tensor:
        """Return the FVU of every layer followed by that of all layers together, `[L + 1]`."""
        variance = self.variance()
        overall = self.residual.sum() / variance.sum()
        return torch.cat([self.residual / variance, overall[None]])


class LayerMean(Metric):
    """Mean of one number per row, for every layer and over all rows.

    Args:
        n_layers: L, the number of tapped layers.
    """

    n: Tensor
    total: Tensor

    def __init__(self, n_layers: int) -> None:
        super().__init__()
        zeros = torch.zeros(n_layers, dtype=torch.float64)
        self.add_state("n", zeros.clone(), dist_reduce_fx="sum")
        self.add_state("total", zeros.clone(), dist_reduce_fx="sum")

    def update(self, values: Tensor, row: Tensor) -> None:
        """Add one number per row, `values: [n]`, of tapped layer `row: [n]`."""
        self.n.index_add_(0, row, torch.ones_like(values, dtype=torch.float64))
        self.total.index_add_(0, row, values.double())

    def compute(self) -> Tensor:
        """Return the mean of every layer followed by that of all rows, `[L + 1]`; NaN if none."""
        means = self.total / self.n.clamp_min(1)
        return torch.cat([means, (self.total.sum() / self.n.sum())[None]])
