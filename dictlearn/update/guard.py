"""No step is taken with a gradient that is not finite: one would ruin all atoms for good."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from dictlearn.errors import InputError
from dictlearn.mesh import ALONE, Processes

log = logging.getLogger(__name__)

MOST_IN_A_ROW = 10
"""Steps in a row that may be skipped before the run ends."""


class StepGuard:
    """Tells whether a step may be taken.

    Gradients are those of all processes by then, and so the choice is the same in all of them;
    of processes that hold parts of the dictionary one with a NaN is enough.
    """

    def __init__(self) -> None:
        self._in_a_row = 0

    def allows(self, gradients: Sequence[Tensor], shards: Processes = ALONE) -> bool:
        """Tell whether no gradient has a NaN or an infinity; a sum shows them at little cost.

        Raises:
            InputError: so many in a row had one that something else is wrong.
        """
        sums = [gradient.sum(dtype=torch.float32) for gradient in gradients]
        if not sums or bool(shards.smallest(torch.stack(sums).isfinite().all().float())):
            self._in_a_row = 0
            return True
        self._in_a_row += 1
        log.warning("A gradient is not finite: the step is skipped.")
        if self._in_a_row >= MOST_IN_A_ROW:
            raise InputError(
                f"The gradients of {MOST_IN_A_ROW} steps in a row were not finite: lower update.lr,"
                " or set transformer.dtype=float32."
            )
        return False
