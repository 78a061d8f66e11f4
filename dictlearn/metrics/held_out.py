"""All held-out figures of a dictionary, under the names of ``metrics.json``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torchmetrics import SumMetric

from dictlearn.codes import Codes
from dictlearn.metrics.firing import FiringFrequency
from dictlearn.metrics.per_layer import LayerFVU, LayerMean


class Measured(NamedTuple):
    """What is measured on a batch of `n` rows.

    Attributes:
        vectors: raw hidden states, `[n, d]`.
        reconstruction: in the same raw space, `[n, d]`.
        row: which tapped layer a vector comes from, int64 `[n]`, counted from 0.
        codes: of the `n` rows.
        objective: value of the problem that inference solves, `[n]`.
    """

    vectors: Tensor
    reconstruction: Tensor
    row: Tensor
    codes: Codes
    objective: Tensor


class HeldOutMetrics(nn.Module):
    """FVU, L0, cosine, objective, gap and dead atoms, reduced over processes by torchmetrics.

    Args:
        layers: indices of `hidden_states` that the vectors come from.
        width: d.
        n_atoms: m.
    """

    def __init__(self, layers: Sequence[int], width: int, n_atoms: int) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.fvu = LayerFVU(len(layers), width)
        self.l0 = LayerMean(len(layers))
        self.cosine = LayerMean(len(layers))
        self.objective = LayerMean(len(layers))
        self.gap = LayerMean(len(layers))
        self.firing = FiringFrequency(n_atoms)
        self.encoder_objective = SumMetric()
        self.solver_objective = SumMetric()

    def share(self, group: ProcessGroup | None) -> None:
        """Reduce over the processes of a group; over all if None."""
        for metric in self.children():
            metric.process_group = group  # type: ignore[assignment]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the figures; ``val/amortisation_gap``, which only encoders have, is last."""
        parts = [
            f"val/{name}{layer}"
            for name in ("fvu", "l0")
            for layer in ("", *(f"_layer_{layer}" for layer in self.layers))
        ]
        others = ("cosine", "objective", "duality_gap", "dead_fraction", "amortisation_gap")
        return (*parts, *(f"val/{name}" for name in others))

    def update(self, measured: Measured) -> None:
        """Add one batch."""
        m = measured
        cosine = torch.cosine_similarity(m.vectors, m.reconstruction, dim=-1)
        self.fvu.update(m.vectors, m.reconstruction, m.row)
        self.l0.update(m.codes.l0(), m.row)
        self.cosine.update(cosine, m.row)
        self.objective.update(m.objective, m.row)
        self.firing.update(m.codes)

    def update_gap(self, gap: Tensor, row: Tensor) -> None:
        """Add the relative duality gap of some rows, `[n]`, of the tapped layers `row: [n]`."""
        self.gap.update(gap, row)

    def update_amortisation(self, encoder: Tensor, solver: Tensor) -> None:
        """Add the objective of some rows with an encoder's codes and with a solver's, `[n]`."""
        self.encoder_objective.update(encoder)
        self.solver_objective.update(solver)

    def compute(self) -> tuple[dict[str, Tensor], Tensor]:
        """Return the figures by name (``val/fvu``, ``val/fvu_layer_0``, ...) and how often every
        atom fired, `[m]`.
        """  # noqa: D205
        firing = self.firing.compute()
        figures: dict[str, Tensor] = {}
        for name, metric in (("fvu", self.fvu), ("l0", self.l0)):
            values = metric.compute()
            figures[f"val/{name}"] = values[-1]
            for layer, value in zip(self.layers, values[:-1], strict=True):
                figures[f"val/{name}_layer_{layer}"] = value
        figures["val/cosine"] = self.cosine.compute()[-1]
        figures["val/objective"] = self.objective.compute()[-1]
        gap = self.gap.compute()[-1]
        if not gap.isnan():  # of a few rows there may be none for which it was measured
            figures["val/duality_gap"] = gap
        solver = self.solver_objective.compute()
        if solver > 0:
            figures["val/amortisation_gap"] = self.encoder_objective.compute() / solver - 1
        figures["val/dead_fraction"] = (firing == 0).double().mean()
        return figures, firing

    def reset(self) -> None:
        """Forget all batches."""
        for metric in self.children():
            metric.reset()  # type: ignore[operator]
