"""Update rules as configs describe them; `build` makes the optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, Self

from torch import nn

from dictlearn.errors import InputError, choice, number, whole_number
from dictlearn.update.optimizers import DictionaryOptimizer, HessianDiagonal, SphereAdam
from dictlearn.update.rates import Run, auto_rate
from dictlearn.update.schedule import Phases, Schedule, check_schedule


class UpdateRule(Phases, Protocol):
    """How the atoms move, and how fast."""

    @property
    def fixed_codes(self) -> bool:
        """Whether the codes are constants of the atoms' gradient, even if the encoder is learned.

        Then the gradient is the paper's `-(1/n) sum_i r_i^T a_i`, which a Newton-like step needs:
        with the path through tied layers in it, the atoms were seen to align and the codes to
        blow up within ten steps.
        """

    def for_run(self, run: Run) -> Self:
        """Return the rule with a number for every rate that is `auto`; comes before `build`."""

    def build(
        self,
        dictionary_parameters: Sequence[nn.Parameter],
        encoder_parameters: Sequence[nn.Parameter],
    ) -> DictionaryOptimizer:
        """Return the optimizer of the atoms `[m, d]`, the bias `[d]` and the encoder."""


@dataclass(frozen=True)
class Adam:
    """Adam on the sphere; see `SphereAdam`.

    Args:
        lr: rate of the dictionary; `auto`: by `auto_rate`.
        encoder_lr: rate of the encoder, `lr` if None.
        warmup_vectors: see `lr_factor`.
        decay_fraction: see `lr_factor`.

    Attributes:
        key: of the rule on the command line, for messages.

    Raises:
        InputError: a number is out of its range.
    """

    key: ClassVar[str] = "update"
    lr: float | str = "auto"
    encoder_lr: float | None = None
    warmup_vectors: int = 25_000
    decay_fraction: float = 0.3

    @property
    def fixed_codes(self) -> bool:
        """False: atoms also learn from what they do in the encoder."""
        return False

    def __post_init__(self) -> None:
        check_rate(f"{self.key}.lr", self.lr, auto=True)
        if self.encoder_lr is not None:
            check_rate(f"{self.key}.encoder_lr", self.encoder_lr)
        check_schedule(self, self.key)

    def in_phase(self, phase: int) -> Schedule:
        """Return itself."""
        return self

    def for_run(self, run: Run) -> Adam:
        """Return the rule with a number for `auto`."""
        return replace(self, lr=auto_rate(run)) if self.lr == "auto" else self

    @property
    def rate_of_encoder(self) -> float:
        """The encoder's rate."""
        return known(self.lr) if self.encoder_lr is None else self.encoder_lr

    def build(
        self,
        dictionary_parameters: Sequence[nn.Parameter],
        encoder_parameters: Sequence[nn.Parameter],
    ) -> SphereAdam:
        """Return the optimizer; see `UpdateRule.build`."""
        return SphereAdam(
            dictionary_parameters, encoder_parameters, known(self.lr), self.rate_of_encoder
        )


@dataclass(frozen=True)
class HessianDiagonalRule:
    """The paper's rule, as released or corrected; see `HessianDiagonal`.

    Args:
        mode: `seed` or `corrected`.
        lr: share of a Newton step; 0.005 in the released code.
        floor: 0.001 in the released code, in units of squared codes; a share of the mean
            curvature when corrected.
        window: updates that the curvature is averaged over.
        encoder_lr: Adam's rate for the encoder.
        warmup_vectors: see `lr_factor`.
        decay_fraction: see `lr_factor`.

    Attributes:
        key: of the rule on the command line, for messages.

    Raises:
        InputError: a number is out of its range.
    """

    key: ClassVar[str] = "update"
    mode: str = "corrected"
    lr: float = 0.05
    floor: float = 0.02
    window: int = 300
    encoder_lr: float = 4e-3
    warmup_vectors: int = 0
    decay_fraction: float = 0.3

    @property
    def fixed_codes(self) -> bool:
        """True."""
        return True

    def __post_init__(self) -> None:
        choice(f"{self.key}.mode", self.mode, ("seed", "corrected"))
        check_rate(f"{self.key}.lr", self.lr)
        check_rate(f"{self.key}.floor", self.floor)
        whole_number(f"{self.key}.window", self.window, minimum=2)
        check_rate(f"{self.key}.encoder_lr", self.encoder_lr)
        check_schedule(self, self.key)

    def in_phase(self, phase: int) -> Schedule:
        """Return itself."""
        return self

    def for_run(self, run: Run) -> HessianDiagonalRule:
        """Return itself: shares of a Newton step fit any run."""
        return self

    def build(
        self,
        dictionary_parameters: Sequence[nn.Parameter],
        encoder_parameters: Sequence[nn.Parameter],
    ) -> HessianDiagonal:
        """Return the optimizer; see `UpdateRule.build`."""
        return HessianDiagonal(
            dictionary_parameters,
            encoder_parameters,
            self.lr,
            self.encoder_lr,
            mode=self.mode,
            window=self.window,
            floor=self.floor,
        )


def check_rate(key: str, value: float | str, auto: bool = False) -> None:
    """Raise InputError unless `value` is a number above 0 or, where allowed, `auto`."""
    if auto and isinstance(value, str):
        if value != "auto":
            raise InputError(f"{key}={value} must be a number above 0, or auto.")
    elif number(key, value) <= 0:
        raise InputError(f"{key}={value} must be above 0.")


def known(rate: float | str) -> float:
    """Return a rate that is a number.

    Raises:
        RuntimeError: it is still `auto`.
    """
    if isinstance(rate, str):
        raise RuntimeError("for_run(run) gives the rate a number, and comes before build")
    return rate
