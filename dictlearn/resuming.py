"""Going on with a run: which checkpoint, with which options."""

from __future__ import annotations

import logging
from pathlib import Path

from dictlearn.errors import InputError
from dictlearn.storage.committed import Committed, newest_whole

log = logging.getLogger(__name__)


def checkpoint_to_go_on_from(run_dir: Path, resume: object) -> Committed | None:
    """Return the newest whole checkpoint of a run directory if the run is to go on from it.

    Args:
        run_dir: the run directory.
        resume: ``auto`` (a run that was broken off goes on), true (there must be one), or false
            (the directory must be a new one).

    Raises:
        InputError: `resume` is none of these, there is no checkpoint though there must be, or the
            directory holds a run that is not to be gone on with.
    """
    if resume not in ("auto", True, False):
        raise InputError(f"resume={resume} must be auto, true or false.")
    folder, finished = run_dir / "checkpoints", (run_dir / "metrics.json").exists()
    begun = any(folder.glob("*.ckpt"))
    if (finished and resume is not True) or (begun and resume is False):
        raise InputError(
            f"{run_dir} already holds a run: give another hydra.run.dir=DIR, or go on with it by "
            "run=DIR resume=true."
        )
    found = newest_whole(folder) if begun else None
    if found is None and resume is True:
        what = "no checkpoint is whole" if begun else "there is no checkpoint"
        raise InputError(f"resume=true, but {what} in {folder}: start anew in another directory.")
    if found is None and begun:
        log.warning("No checkpoint in %s is whole: the run starts anew.", folder)
    if found is not None:
        log.info("Going on from step %d of %s", found.step, run_dir)
    return found


def refuse_finished(found: Committed | None, n_steps: int, run_dir: Path) -> None:
    """Refuse to go on with a run that left its figures and has no step to do.

    Raises:
        InputError: it is such a run.
    """
    if found is not None and found.step >= n_steps and (run_dir / "metrics.json").exists():
        raise InputError(
            f"{run_dir} has finished after {found.step} steps, and {n_steps} are asked for: raise "
            "max_vectors to train on, with as many vectors a step of all processes as before."
        )
