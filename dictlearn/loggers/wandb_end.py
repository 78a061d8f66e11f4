"""The end of a W&B run: in bounded time, without noise, and also where its service has died."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wandb.sdk.wandb_run import Run

log = logging.getLogger(__name__)


def finish_run(run: Run, exit_code: int) -> None:
    """Close the run; what W&B would print is told afterwards, but not beside an error.

    Raises:
        TimeoutError: the upload took longer than the settings of the run allow.
    """
    import wandb

    said = _Said()
    wandb.termsetup(wandb.Settings(silent=True), said)
    try:
        run.finish(exit_code=exit_code)
    finally:
        wandb.termsetup(wandb.setup().settings, None)
    for sentence in said.warnings:
        log.warning("W&B: %s", sentence)


def leave_service() -> None:
    """Let go of a service that died: the next job gets its own, and Python ends without a trace."""
    import wandb

    # W&B would end this process with the exit code of its service.
    with contextlib.suppress(Exception, SystemExit):
        wandb.teardown()


class _Said:
    """Keeps the warnings that W&B would print."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def info(self, msg: str) -> None:
        """Pass over it."""

    def warning(self, msg: str) -> None:
        self.warnings.append(msg)

    error = warning
