"""The price of a unit of code as a state of training, steered to a wanted L0.

Legend: n rows, L tapped layers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

GAIN = 0.1
"""Largest change of log lambda in a step, of exact codes, which answer to it at once. L0 falls
with about the second power of lambda, so a step takes a fifth of the way at most: fast enough for
a run of some hundred steps, and stable."""

SLOW_GAIN = 0.02
"""The same for learned encoders, which answer after some 20 to 50 steps: at 0.1 lambda has by then
grown tenfold, and all atoms are dead."""


class Price(nn.Module):
    """lambda, moved after every training step by how far the mean L0 is from its target.

        log lambda  <-  log lambda + gain * clip(L0 / target - 1, -1, 1)

    Nothing is read back to the host.

    Args:
        lambda_: where it starts.
        target_l0: codes wanted per row, on average.
        gain: `GAIN` or `SLOW_GAIN`.
    """

    lambda_: Tensor

    def __init__(self, lambda_: float, target_l0: float, gain: float = GAIN) -> None:
        super().__init__()
        self.target_l0 = target_l0
        self.gain = gain
        self.register_buffer("lambda_", torch.tensor(float(lambda_)))

    @torch.no_grad()
    def observe(self, l0: Tensor) -> None:
        """Take the mean L0 of a step, 0-dimensional, over the rows of all processes."""
        change = torch.exp(self.gain * (l0 / self.target_l0 - 1).clamp(-1, 1))
        self.lambda_ = self.lambda_ * change  # not in place: the step's backward is still to come
