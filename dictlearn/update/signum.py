"""Steps along the sign of the momentum, on the sphere.

Legend: m atoms, d width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from dictlearn.errors import number
from dictlearn.update.moments import blocks, take_radial, to_sphere
from dictlearn.update.optimizers import DictionaryOptimizer
from dictlearn.update.rates import Run, auto_rate
from dictlearn.update.rules import check_rate, known
from dictlearn.update.schedule import Schedule, check_schedule


class SphereSignum(DictionaryOptimizer):
    """Signum for the atoms (Bernstein et al. 2018, Algorithm 2), kept on the sphere.

        v   <- beta v + (1 - beta) g          g: the gradient less its part along the atom
        Phi <- normalise(Phi - lr sign(v))    for atoms with g != 0

    Two thirds of Adam's memory for the atoms. The sign has no scale, so that one faint old gradient
    would move an atom as far as a strong new one at every step to come: atoms without a gradient
    stand still.

    Args:
        dictionary_parameters: the atoms `[m, d]` and, if there is one, the bias `[d]`.
        encoder_parameters: trained by Adam.
        lr: change of every entry of an atom in a step.
        encoder_lr: Adam's rate, for the bias too.
        momentum: beta.
    """

    def __init__(
        self,
        dictionary_parameters: Sequence[nn.Parameter],
        encoder_parameters: Sequence[nn.Parameter],
        lr: float,
        encoder_lr: float,
        momentum: float,
    ) -> None:
        super().__init__(dictionary_parameters, encoder_parameters, lr, encoder_lr)
        self.momentum = momentum

    def _bias_rate(self, lr: float, encoder_lr: float) -> float:
        return encoder_lr

    def _update(self) -> None:
        self._adam("bias", "encoder")
        gradient, state = self.atoms.grad, self.state[self.atoms]
        if gradient is None:
            return
        if not state:
            state["step"] = torch.zeros((), device=self.atoms.device)
            state["exp_avg"] = torch.zeros_like(self.atoms)
        state["step"] += 1
        for atoms, g, mean in blocks(self.atoms, gradient, state["exp_avg"]):
            take_radial(g, atoms)
            mean.lerp_(g, 1 - self.momentum)
            moved = (g != 0).any(1, keepdim=True)
            atoms.sub_(mean.sign() * moved, alpha=self.param_groups[0]["lr"])
            to_sphere(atoms)


@dataclass(frozen=True)
class Signum:
    """Signum on the sphere; see `SphereSignum`.

    Args:
        lr: change of every entry of an atom in a step; `auto`: half of Adam's, because entries
            whose gradient is noise move as far as the others.
        encoder_lr: Adam's rate for the encoder; None: twice `lr`.
        momentum: share of the old momentum kept in a step.
        warmup_vectors: see `lr_factor`.
        decay_fraction: see `lr_factor`.

    Raises:
        InputError: a number is out of its range.
    """

    lr: float | str = "auto"
    encoder_lr: float | None = None
    momentum: float = 0.95
    warmup_vectors: int = 25_000
    decay_fraction: float = 0.3

    @property
    def fixed_codes(self) -> bool:
        """False: atoms also learn from what they do in the encoder."""
        return False

    def __post_init__(self) -> None:
        check_rate("update.lr", self.lr, auto=True)
        if self.encoder_lr is not None:
            check_rate("update.encoder_lr", self.encoder_lr)
        number("update.momentum", self.momentum, 0.0, 0.999)
        check_schedule(self, "update")

    def in_phase(self, phase: int) -> Schedule:
        """Return itself."""
        return self

    def for_run(self, run: Run) -> Signum:
        """Return the rule with a number for `auto`."""
        return replace(self, lr=auto_rate(run) / 2) if self.lr == "auto" else self

    def build(
        self,
        dictionary_parameters: Sequence[nn.Parameter],
        encoder_parameters: Sequence[nn.Parameter],
    ) -> SphereSignum:
        """Return the optimizer; see `UpdateRule.build`."""
        lr = known(self.lr)
        encoder_lr = 2 * lr if self.encoder_lr is None else self.encoder_lr
        return SphereSignum(
            dictionary_parameters, encoder_parameters, lr, encoder_lr, self.momentum
        )
