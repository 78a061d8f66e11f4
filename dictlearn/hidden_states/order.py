"""What the order of the data depends on: a run goes on exactly only where all of it is the same."""

from __future__ import annotations

from collections.abc import Mapping

from dictlearn.errors import InputError

PER_STEP = "vectors_per_step"


def check_order(saved: Mapping[str, object], now: Mapping[str, object], world: int) -> None:
    """Check that a run sees its vectors in the order that it began with.

    Args:
        saved: what the order depended on when the run began, by the names of the options.
        now: what it depends on now; `PER_STEP` are the vectors of a step of all processes.
        world: number of processes now.

    Raises:
        InputError: something is not the same.
    """
    before, present = saved.get(PER_STEP), now.get(PER_STEP)
    if before != present and isinstance(before, int):
        share = before // world if before % world == 0 else f"{before}/{world}"
        raise InputError(
            f"The run began with {before} vectors a step and now has {present} on {world} "
            f"processes: set hidden_states.batch_size={share}."
        )
    for key, value in now.items():
        if saved.get(key) != value:
            raise InputError(
                f"The run began with {key}={saved.get(key)} and now has {value}: its vectors would "
                "come in another order. Go on with the options and the text that it began with."
            )
