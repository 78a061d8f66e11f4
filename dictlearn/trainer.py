"""The Trainer that a config asks for; what it may not ask for is told."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Checkpoint

from dictlearn.begun import options_of_this_start
from dictlearn.callbacks.begun import KeepOptions
from dictlearn.callbacks.checkpoints import RunCheckpoints
from dictlearn.callbacks.left_out import LeftOut
from dictlearn.callbacks.memory import BatchThatFits
from dictlearn.callbacks.throughput import Throughput
from dictlearn.cluster import check_world, environments, meet_again
from dictlearn.configuration import build
from dictlearn.errors import InputError, number, whole_number
from dictlearn.hidden_states import DataModule
from dictlearn.mesh import data_processes
from dictlearn.storage.checkpoint import AtomicCheckpointIO

log = logging.getLogger(__name__)


def build_trainer(
    config: DictConfig,
    data: DataModule,
    started: float,
    run_dir: Path,
    hung: list[pl.Callback],
) -> pl.Trainer:
    """Build the trainer of a run.

    Args:
        config: ``conf/train.yaml``, composed.
        data: what it learns from.
        started: when the run was started, by `time.perf_counter`.
        run_dir: its directory.
        hung: callbacks of the config.

    Raises:
        InputError: an option of the trainer is wrong, or would change what is learned.
    """
    share = _checked(config.trainer)
    loggers = [build(node) for node in (config.get("logger") or {}).values() if node is not None]
    if not _validates(config, data):
        for entry in hung:
            if isinstance(entry, RunCheckpoints):
                entry.monitor = None  # there is no best
    kept = KeepOptions(run_dir, options_of_this_start(config))
    trainer: pl.Trainer = build(
        config["trainer"],
        max_epochs=1,  # the budget is max_vectors: one epoch is the whole run
        logger=loggers or False,
        callbacks=[*hung, Throughput(started), LeftOut(), BatchThatFits(), kept],
        plugins=[AtomicCheckpointIO(), *environments()],
        enable_checkpointing=any(isinstance(entry, Checkpoint) for entry in hung),
    )
    # Lightning would take the signals over, and end the run at the first one, with exit code 0.
    signals: Any = trainer._signal_connector
    signals.register_signal_handlers = lambda: None
    check_world(trainer)
    meet_again(trainer)
    if trainer.accumulate_grad_batches != 1:
        raise InputError(
            "trainer.accumulate_grad_batches would stretch the schedule, which counts vectors: "
            "raise hidden_states.batch_size instead."
        )
    if trainer.precision != "32-true":
        raise InputError(
            f"trainer.precision={trainer.precision}: the dictionary is learned in 32 bits; "
            "transformer.dtype=bfloat16 makes the transformer faster."
        )
    steps = data.n_steps(data_processes(trainer))
    most = trainer.limit_train_batches
    steps = min(steps, most if isinstance(most, int) else int(steps * most))
    every = int(steps * share) if share <= 1 else int(share)
    trainer.val_check_interval = max(1, min(every, steps))
    return trainer


def _checked(options: DictConfig) -> float:
    """Refuse what Lightning would take in another sense; return how often to validate."""
    whole_number("trainer.log_every_n_steps", options.log_every_n_steps)
    if isinstance(options.max_time, int | float):
        raise InputError(
            f"trainer.max_time={options.max_time} must be DD:HH:MM:SS, as in 00:12:00:00."
        )
    for key in ("max_epochs", "min_epochs", "fast_dev_run"):
        if options.get(key) not in (None, False):
            raise InputError(
                f"trainer.{key} has no meaning here: max_vectors says how long a run is, and goes "
                "round the text as often as it takes; debug=quick is a short one."
            )
    return number("trainer.val_check_interval", options.val_check_interval, 1e-6)


def _validates(config: DictConfig, data: DataModule) -> bool:
    """Tell whether held-out text is looked at; if not, say that there will be no such figures."""
    held_out = data.text.validation_fraction and data.options.validation_vectors
    if held_out and config.trainer.limit_val_batches:
        return True
    why = "trainer.limit_val_batches=0" if held_out else "Nothing is held out"
    log.warning("%s: there will be no validation and no held-out figures.", why)
    return False
