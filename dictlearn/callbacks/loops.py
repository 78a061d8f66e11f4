"""Where Lightning's loops go on: its counters, as they are exactly between two steps.

Lightning saves its counters as they happen to be in the hook that saves, and guesses from them
where it was; a validation that was due but not done it takes for done, and a step that was logged
it may log again. What really decides is the number of steps done and whether the validation after
them is still to come; everything else is set from these two.
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl


def validates_after(trainer: pl.Trainer, step: int, n_steps: int) -> bool:
    """Tell whether a validation follows `step` of `n_steps` steps."""
    every: int | float = trainer.val_check_interval
    steps = every if isinstance(every, int) else max(1, int(every * n_steps))
    return bool(trainer.limit_val_batches) and step > 0 and step % steps == 0


def set_between_steps(
    loops: dict[str, Any], step: int, n_steps: int, validation_due: bool, validation_to_come: bool
) -> None:
    """Set the saved counters of an unfinished epoch to what they are between two steps, in place.

    Args:
        loops: ``checkpoint["loops"]`` of a fit with one epoch.
        step: steps done, one batch each.
        n_steps: of the epoch.
        validation_due: whether a validation follows this step.
        validation_to_come: whether it is still to come; else it was done.
    """
    fit = loops["fit_loop"]
    fit["epoch_loop.batch_progress"]["is_last_batch"] = step == n_steps
    for counts in _parts(fit["epoch_loop.batch_progress"]):
        counts.update(ready=step, started=step, processed=step, completed=step)
    for counts in _parts(fit["epoch_progress"]):
        counts.update(ready=1, started=1, processed=0, completed=0)
    # Lightning counts this one after the validation, also where it finds that done already.
    fit["epoch_loop.state_dict"]["_batches_that_stepped"] = step - int(validation_due)
    for counts in _parts(fit["epoch_loop.val_loop.batch_progress"]):
        # One batch begun and not done: so Lightning recognises a validation that was broken off.
        begun = int(validation_due and validation_to_come)
        counts.update(ready=begun, started=begun, processed=0, completed=0)


def _parts(progress: dict[str, Any]) -> tuple[dict[str, int], dict[str, int]]:
    return progress["total"], progress["current"]
