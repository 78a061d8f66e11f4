"""The learning rate over a run, stated in vectors seen."""

from __future__ import annotations

from typing import Protocol

from dictlearn.errors import number, whole_number


class Schedule(Protocol):
    """Anything that says how long to warm up and to decay."""

    @property
    def warmup_vectors(self) -> int:
        """Vectors over which the rate rises from a tenth to all of it."""

    @property
    def decay_fraction(self) -> float:
        """Last share of the run, over which the rate falls to zero."""


class Phases(Schedule, Protocol):
    """Anything that says so for every phase of a run."""

    def in_phase(self, phase: int) -> Schedule:
        """Return the schedule of a phase, counted from 0; itself where phases are alike."""


def lr_factor(rule: Phases, vectors_seen: int, max_vectors: int, phase: int = 0) -> float:
    """Return what the learning rate is multiplied with.

    It rises linearly from 0.1 over `warmup_vectors`, but at most over a tenth of the run, stays
    at 1, and falls linearly to 0 over the last `decay_fraction` of the run. A run of several
    phases does so in each of them.

    Args:
        rule: an update rule.
        vectors_seen: vectors of all processes before this step, since the phase began.
        max_vectors: the budget of the phase.
        phase: number of the phase.
    """
    schedule = rule.in_phase(phase)
    warmup = min(schedule.warmup_vectors, 0.1 * max_vectors)
    rise = 0.1 + 0.9 * vectors_seen / warmup if warmup > 0 else 1.0
    tail = schedule.decay_fraction * max_vectors
    fall = (max_vectors - vectors_seen) / tail if tail > 0 else 1.0
    return max(0.0, min(1.0, rise, fall))


def check_schedule(schedule: Schedule, key: str) -> None:
    """Raise InputError when a number of the schedule is out of its range.

    Args:
        schedule: a rule.
        key: of the rule on the command line, `update` or what is below it.
    """
    whole_number(f"{key}.warmup_vectors", schedule.warmup_vectors, minimum=0)
    number(f"{key}.decay_fraction", schedule.decay_fraction, 0.0, 1.0)
