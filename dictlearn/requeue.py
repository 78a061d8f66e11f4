"""Back into SLURM's queue, before the time of a job is up."""

from __future__ import annotations

import logging
import os
import signal
import subprocess

log = logging.getLogger(__name__)


def requeue() -> None:
    """Put this job of SLURM back into the queue, if it is one; the last thing that a run does.

    SLURM ends what is left of the job by SIGTERM then, which is no news any more.
    """
    job, array = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_ARRAY_JOB_ID")
    if array is not None:
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if job is None:
        return
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        done = subprocess.run(
            ["scontrol", "requeue", job], check=False, capture_output=True, text=True, timeout=60
        )
        said = done.stderr.strip() if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        said = str(error)
    if said:
        log.warning("SLURM does not take job %s back (%s): submit it again by hand.", job, said)
    else:
        log.info("SLURM has job %s in its queue again.", job)
