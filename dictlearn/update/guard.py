"""No step is taken with a gradient that is not finite: one would ruin all atoms for good."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dictlearn.errors import InputError
from dictlearn.mesh import ALONE, Processes

log = logging.getLogger(__name__)

MOST_IN_A_ROW = 10
"""Steps in a row that may be skipped before the run ends."""

_MOST_NAMED = 3


class StepGuard:
    """Tells whether a step may be taken.

    Gradients are those of all processes by then, and so the choice is the same in all of them;
    of processes that hold parts of the dictionary one with a NaN is enough.

    Attributes:
        names: of the parameters, for messages.
        step: number of the coming step, for messages.
    """

    def __init__(self) -> None:
        self.names: dict[Tensor, str] = {}
        self.step = 0
        self._in_a_row = 0

    def know(self, module: nn.Module, lead: str = "") -> None:
        """Take the names of the parameters of a module, with a lead before them."""
        self.names = {entry: lead + name for name, entry in module.named_parameters()}

    def allows(self, parameters: Iterable[Tensor], shards: Processes = ALONE) -> bool:
        """Tell whether no gradient has a NaN or an infinity; a sum shows them at little cost.

        Raises:
            InputError: so many in a row had one that something else is wrong.
        """
        given = [(entry, entry.grad) for entry in parameters if entry.grad is not None]
        sums = [gradient.sum(dtype=torch.float32) for _, gradient in given]
        finite = shards.smallest(torch.stack(sums).isfinite().float()) if sums else torch.ones(())
        if bool(finite.all()):
            self._in_a_row = 0
            return True
        self._in_a_row += 1
        bad = [entry for (entry, _), good in zip(given, finite.tolist(), strict=True) if not good]
        whose = self._named(bad)
        log.warning("At step %d the gradient of %s is not finite: skipped.", self.step, whose)
        if self._in_a_row >= MOST_IN_A_ROW:
            raise InputError(
                f"The gradients of {MOST_IN_A_ROW} steps in a row were not finite, at step"
                f" {self.step} that of {whose}: lower update.lr, or set transformer.dtype=float32."
            )
        return False

    def _named(self, parameters: list[Tensor]) -> str:
        """Return the names of some parameters, not of all if they are many."""
        names = [self.names.get(one, f"a tensor of {list(one.shape)}") for one in parameters]
        rest = len(names) - _MOST_NAMED
        return ", ".join(names[:_MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")
