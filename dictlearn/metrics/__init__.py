"""Held-out figures as torchmetrics: FVU, L0, cosine, objective, gap, dead atoms; also per layer."""

from dictlearn.metrics.firing import FiringFrequency
from dictlearn.metrics.held_out import HeldOutMetrics
from dictlearn.metrics.per_batch import training_figures
from dictlearn.metrics.per_layer import LayerFVU, LayerMean

__all__ = ["FiringFrequency", "HeldOutMetrics", "LayerFVU", "LayerMean", "training_figures"]
