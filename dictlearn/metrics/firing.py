"""How often every atom fires."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from dictlearn.codes import Codes


class FiringFrequency(Metric):
    """The share of rows on which every atom is active (code > 0).

    Args:
        n_atoms: m.
    """

    n: Tensor
    fired: Tensor

    def __init__(self, n_atoms: int) -> None:
        super().__init__()
        self.add_state("n", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("fired", torch.zeros(n_atoms, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, codes: Codes) -> None:
        """Add the codes of `n` rows."""
        self.n += len(codes.values)
        self.fired += codes.fired().double()

    def compute(self) -> Tensor:
        """Return the firing frequency of every atom, `[m]`, between 0 and 1."""
        return self.fired / self.n.clamp_min(1)
