"""What a run tells its loggers beside the metrics: config, atom usage, artefact, and the end."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger
from torch import Tensor

from dictlearn.loggers.csv import CsvLogger
from dictlearn.loggers.tensorboard import TensorBoardRunLogger
from dictlearn.loggers.weights_and_biases import WandbRunLogger

LOWEST_DECADE = -7
BINS_PER_DECADE = 10
LARGEST_PAGE = 1_500_000  # bytes

log = logging.getLogger(__name__)


def usage_histogram(frequency: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Count atoms by log10 of how often they fire.

    The bins are fixed, so that histograms of different times and runs can be laid over each other.

    Args:
        frequency: `[m]`, fraction of held-out vectors on which each atom fired. Atoms that never
            fired are counted in the lowest bin, at 1e-7.

    Returns:
        counts `[b]` and the edges of the bins `[b + 1]`.
    """
    values = frequency.detach().double().cpu().numpy()
    decades = np.log10(np.clip(values, 10.0**LOWEST_DECADE, 1.0))
    return np.histogram(decades, -LOWEST_DECADE * BINS_PER_DECADE, (LOWEST_DECADE, 0))


class RunReport(pl.Callback):
    """Sends W&B a histogram of atom usage, `atom_usage`, at the end of every validation."""

    # Not at the epoch's end: there callbacks are called before the learner has its figures.
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the histogram of `validation_firing_frequency`, where there is one: that of the
        module, or those of its `acting` parts, by their names.
        """  # noqa: D205
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        for name, part in getattr(pl_module, "acting", {"": pl_module}).items():
            frequency = getattr(part, "validation_firing_frequency", None)
            key = f"{name}/atom_usage" if name else "atom_usage"
            if frequency is None:
                continue
            for logger in _wandb(trainer.loggers):
                logger.log_histogram(key, usage_histogram(frequency), trainer.global_step)


def log_config(loggers: Iterable[Logger], config: dict[str, Any]) -> None:
    """Give the resolved config, nested and of plain values, to every logger that keeps one."""
    for logger in loggers:
        logger.log_hyperparams(config)


def log_artifact(
    loggers: Iterable[Logger], folder: Path, name: str, metadata: Mapping[str, Any]
) -> None:
    """Give W&B the files of `folder` as an artifact of type "dictionary" with this name.

    Args:
        loggers: of the run; those that are not W&B are passed over.
        folder: the artefact, complete on the disk; it must stay there until it is uploaded.
        name: of the artifact in W&B.
        metadata: plain values that W&B shows beside it, for example the held-out figures.
    """
    for logger in _wandb(loggers):
        logger.log_folder(folder, name, metadata)


def finish_loggers(loggers: Iterable[Logger], failed: bool = False) -> None:
    """Close the W&B run of this job within a bounded time; the next job then gets its own.

    Args:
        loggers: of the run.
        failed: whether the run ended by an error; W&B marks it so.
    """
    for logger in _wandb(loggers):
        logger.finish(failed)


def history_rows(loggers: Iterable[Logger]) -> list[int]:
    """Return how many rows every local history has."""
    return [logger.n_rows for logger in loggers if isinstance(logger, CsvLogger)]


def rewind(loggers: Iterable[Logger], n_rows: Iterable[int], step: int) -> None:
    """Drop what the local histories have beyond so many rows; the run goes on from `step`."""
    loggers = list(loggers)
    histories = [logger for logger in loggers if isinstance(logger, CsvLogger)]
    for history, rows in zip(histories, n_rows, strict=False):
        history.rewind(rows)
    for logger in loggers:
        if isinstance(logger, TensorBoardRunLogger) and step > 0:
            logger.rewind(step)


def _wandb(loggers: Iterable[Logger]) -> list[WandbRunLogger]:
    return [logger for logger in loggers if isinstance(logger, WandbRunLogger)]


def log_page(loggers: Iterable[Logger], path: Path, step: int, prefix: str = "") -> None:
    """Give W&B a self-contained HTML page under the name of its file, if it is not too large.

    Args:
        loggers: of the run.
        path: of the page.
        step: of the run.
        prefix: of the name, where a run has several such pages.
    """
    for logger in _wandb(loggers):
        size = path.stat().st_size
        if size > LARGEST_PAGE:
            log.warning("%s (%.1f MB) is too large for W&B; the run has it.", path, size / 1e6)
        else:
            logger.log_page(f"{prefix}{path.stem}", path, step)
