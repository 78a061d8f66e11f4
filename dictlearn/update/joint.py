"""One optimizer for several dictionaries that are learned side by side."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch

from dictlearn.update.optimizers import DictionaryOptimizer, HessianDiagonal


class JointOptimizer(torch.optim.Optimizer):
    """Steps several optimizers at once; Lightning sees one, and counts one step for every batch.

    The parameter groups are those of the parts, one part after the other, and the very same
    mappings: a rate that a schedule sets here is set there.

    Args:
        parts: one for every dictionary, without a parameter in common.

    Attributes:
        acting: those that take steps.
    """

    def __init__(self, parts: Sequence[DictionaryOptimizer]) -> None:
        self.parts = self.acting = tuple(parts)
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._step_supports_amp_scaling = False  # as that of the parts
        self._share_groups()

    def _share_groups(self) -> None:
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step with each that acts; return what the closure returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.acting:
            part.step()
        self.zero_grad()  # of the others, which data parallel training gives gradients too
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the parts."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them up."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()


def copy_state(source: DictionaryOptimizer, target: DictionaryOptimizer) -> None:
    """Give one optimizer what another has learned, for parameters of the same shapes.

    A curvature whose age counts begins anew: the codes of another sparsity have another size.
    """
    for mine, its in zip(target.param_groups, source.param_groups, strict=True):
        mine.update({key: value for key, value in its.items() if key != "params"})
        for parameter, other in zip(mine["params"], its["params"], strict=True):
            target.state[parameter] = copy.deepcopy(source.state[other])
    corrected = isinstance(target, HessianDiagonal) and target.mode == "corrected"
    if corrected and "energy" in target.state[target.atoms]:
        target.state[target.atoms] = {}
