"""W&B's service: its start and the end of a run, in bounded time, also where it does not run."""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wandb.sdk.wandb_run import Run

log = logging.getLogger(__name__)


def service_starts(seconds: float) -> bool:
    """Tell whether the service starts in time, or W&B says at once why it does not.

    In a thread of its own: where its program cannot be run, W&B waits for it without an end. What
    is raised here is raised, and told, again by whatever asks W&B next.
    """
    import wandb

    def start() -> None:
        with contextlib.suppress(Exception):
            wandb.setup()

    thread = threading.Thread(target=start, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


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
