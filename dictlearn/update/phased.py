"""Rules that change within a run, or leave the atoms alone.

Legend: m atoms, d width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor, nn

from dictlearn.update.optimizers import DictionaryOptimizer, HessianDiagonal
from dictlearn.update.rates import Run, auto_rate
from dictlearn.update.rules import Adam, HessianDiagonalRule, check_rate, known
from dictlearn.update.schedule import Schedule, check_schedule


class PhasedOptimizer(HessianDiagonal):
    """Adam on the sphere while codes are an encoder's, the Hessian-diagonal rule once exact.

    Adam's steps have one length for all atoms, which is right while an encoder still has to
    find them; with exact codes the second derivative is known and a Newton-like step is better.
    Encoder and bias are Adam's throughout. At the switch, told by `set_exact`, the statistics of
    the atoms start anew; the phase is part of the state dict. The rates that a schedule sees are
    those of the first phase; in the second the step multiplies them to the second rule's.

    Args:
        dictionary_parameters: the atoms `[m, d]` and, if there is one, the bias `[d]`.
        encoder_parameters: trained by Adam.
        first: rule while the codes are an encoder's.
        then: rule while the codes are exact.
    """

    def __init__(
        self,
        dictionary_parameters: Sequence[nn.Parameter],
        encoder_parameters: Sequence[nn.Parameter],
        first: Adam,
        then: HessianDiagonalRule,
    ) -> None:
        lr, encoder_lr = known(first.lr), first.rate_of_encoder
        super().__init__(
            dictionary_parameters,
            encoder_parameters,
            lr,
            encoder_lr,
            mode=then.mode,
            window=then.window,
            floor=then.floor,
        )
        self._ratio = {
            "atoms": then.lr / lr,
            "bias": then.encoder_lr / lr,
            "encoder": then.encoder_lr / encoder_lr,
        }
        self.param_groups[0]["exact"] = False

    def _bias_rate(self, lr: float, encoder_lr: float) -> float:
        return lr

    @property
    def rate(self) -> float:
        """The rate of the atoms in the coming step, in the units of the rule that acts."""
        return super().rate * (self._ratio["atoms"] if self.exact else 1.0)

    @property
    def exact(self) -> bool:
        """Whether the second rule is at work."""
        return bool(self.param_groups[0]["exact"])

    def set_exact(self, exact: bool) -> None:
        """Choose the rule of the coming step; where it changes, the atoms' statistics go."""
        if exact != self.exact:
            self.param_groups[0]["exact"] = exact
            self.state.pop(self.atoms, None)
            self._observed.clear()

    def observe(self, energy: Tensor) -> None:
        """Take the mean squared codes `[m]`, if they are exact."""
        if self.exact:
            super().observe(energy)

    def _update(self) -> None:
        if not self.exact:
            self._adam_on_sphere()
            return
        scheduled = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] *= self._ratio[group["role"]]
        super()._update()
        for group, rate in zip(self.param_groups, scheduled, strict=True):
            group["lr"] = rate


@dataclass(frozen=True)
class FirstAdam(Adam):
    """Adam as the first rule of `Phased`, under its key on the command line."""

    key: ClassVar[str] = "update.first"


@dataclass(frozen=True)
class ThenHessianDiagonal(HessianDiagonalRule):
    """The paper's rule as the second of `Phased`, under its key on the command line."""

    key: ClassVar[str] = "update.then"


@dataclass(frozen=True)
class Phased:
    """Adam while codes are an encoder's, then the paper's rule; see `PhasedOptimizer`.

    Args:
        first: rule of the amortised phase.
        then: rule of the exact phase.
    """

    first: Adam
    then: HessianDiagonalRule

    @property
    def fixed_codes(self) -> bool:
        """False: in the first phase atoms also learn from what they do in the encoder."""
        return False

    @property
    def warmup_vectors(self) -> int:
        """That of the first phase."""
        return self.first.warmup_vectors

    @property
    def decay_fraction(self) -> float:
        """That of the first phase."""
        return self.first.decay_fraction

    def in_phase(self, phase: int) -> Schedule:
        """Return the schedule of a phase of the run, counted from 0."""
        return self.first if phase == 0 else self.then

    def for_run(self, run: Run) -> Phased:
        """Return the rule with a number for the first rate."""
        return replace(self, first=self.first.for_run(run))

    def build(
        self,
        dictionary_parameters: Sequence[nn.Parameter],
        encoder_parameters: Sequence[nn.Parameter],
    ) -> PhasedOptimizer:
        """Return the optimizer; see `UpdateRule.build`."""
        return PhasedOptimizer(dictionary_parameters, encoder_parameters, self.first, self.then)


class EncoderAdam(DictionaryOptimizer):
    """Adam for the encoder; the dictionary, atoms and bias, stays bit by bit what it is."""

    moves_atoms = False

    @property
    def rate(self) -> float:
        """The rate of the encoder: there is no other; 0 without one."""
        rates = [group["lr"] for group in self.param_groups if group["role"] == "encoder"]
        return float(rates[0]) if rates else 0.0

    def _update(self) -> None:
        self._adam("encoder")


@dataclass(frozen=True)
class Frozen:
    """The dictionary does not move and only the encoder learns; see `EncoderAdam`.

    Args:
        encoder_lr: Adam's rate.
        warmup_vectors: see `lr_factor`.
        decay_fraction: see `lr_factor`.

    Raises:
        InputError: a number is out of its range.
    """

    encoder_lr: float | str = "auto"
    warmup_vectors: int = 25_000
    decay_fraction: float = 0.3

    @property
    def fixed_codes(self) -> bool:
        """True: no gradient of the atoms is of use."""
        return True

    def __post_init__(self) -> None:
        check_rate("update.encoder_lr", self.encoder_lr, auto=True)
        check_schedule(self, "update")

    def in_phase(self, phase: int) -> Schedule:
        """Return itself."""
        return self

    def for_run(self, run: Run) -> Frozen:
        """Return the rule with a number for `auto`."""
        rate = auto_rate(run) if self.encoder_lr == "auto" else self.encoder_lr
        return replace(self, encoder_lr=rate)

    def build(
        self,
        dictionary_parameters: Sequence[nn.Parameter],
        encoder_parameters: Sequence[nn.Parameter],
    ) -> EncoderAdam:
        """Return the optimizer; see `UpdateRule.build`."""
        return EncoderAdam(dictionary_parameters, encoder_parameters, 0.0, known(self.encoder_lr))
