"""The main job: fit, evaluate on held-out text, save the artefact. It knows all rooms."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig
from pytorch_lightning.callbacks import ModelCheckpoint, ProgressBar

from dictlearn.callbacks.throughput import Throughput
from dictlearn.configuration import build, known_keys, plain
from dictlearn.errors import InputError, nearest, whole_number
from dictlearn.hidden_states import HiddenStateDataModule
from dictlearn.learner import DictionaryLearner
from dictlearn.loggers import finish_loggers, log_artifact, log_config
from dictlearn.noise import quiet
from dictlearn.storage.atomic import write_text
from dictlearn.storage.checkpoint import AtomicCheckpointIO
from dictlearn.storage.saved import save_dictionary

log = logging.getLogger(__name__)


def train(config: DictConfig, run_dir: Path) -> dict[str, float]:
    """Run the main job and leave a complete run directory.

    Args:
        config: ``conf/train.yaml``, composed.
        run_dir: where checkpoints, dictionary, metrics and logs go.

    Returns:
        The figures of ``metrics.json``.

    Raises:
        InputError: something in the config, the model or the text is wrong.
    """
    start = time.perf_counter()
    quiet()
    values = plain(config)
    _refuse_unknown(values)
    pl.seed_everything(whole_number("seed", config.seed, 0), verbose=False)
    learner, data = compose(config, values)
    trainer = _trainer(config, data)
    try:
        log_config(trainer.loggers, values)
        trainer.fit(learner, datamodule=data)
        _keep_last(trainer)
        figures = _held_out(trainer, learner, data)
        figures |= _training_figures(trainer, learner, data)
        figures["seconds/total"] = time.perf_counter() - start
        if trainer.is_global_zero:
            _leave(run_dir, learner, data, values, figures)
            log_artifact(trainer.loggers, run_dir / "dictionary", config.name, figures)
        trainer.strategy.barrier()
    except BaseException:
        finish_loggers(trainer.loggers, failed=True)
        raise
    finish_loggers(trainer.loggers)
    return figures


def compose(
    config: DictConfig, values: dict[str, Any]
) -> tuple[DictionaryLearner, HiddenStateDataModule]:
    """Build the learner and its stream; what is cheap comes first, so that a wrong value is told
    before a model is loaded.
    """  # noqa: D205
    max_vectors = whole_number("max_vectors", config.max_vectors)
    prox = build(config["prox"])
    inference = build(config["inference"])
    update = build(config["update"])
    options = build(config["hidden_states"])
    text = build(config["text"])
    transformer = build(config["transformer"])
    dictionary = build(config["dictionary"], width=transformer.hidden_size, seed=config.seed)
    learner = DictionaryLearner(
        dictionary, prox, inference, update, max_vectors=max_vectors, config=values
    )
    data = HiddenStateDataModule(
        transformer,
        text,
        options,
        max_vectors=max_vectors,
        seed=config.seed,
        data_dir=Path(config.data_dir),
    )
    return learner, data


def _refuse_unknown(values: dict[str, Any]) -> None:
    names = known_keys("train")
    for key in values:
        if key not in names:
            raise InputError(f"There is no option '{key}'.{nearest(key, names)}")


def _callbacks(config: DictConfig, data: HiddenStateDataModule) -> list[pl.Callback]:
    callbacks = [build(node) for node in (config.get("callbacks") or {}).values()]
    if not config.trainer.enable_progress_bar:
        callbacks = [entry for entry in callbacks if not isinstance(entry, ProgressBar)]
    if data.text.validation_fraction == 0:
        for entry in callbacks:
            if isinstance(entry, ModelCheckpoint):
                entry.monitor = None  # nothing is held out: only the last state is kept
    return [*callbacks, Throughput()]


def _trainer(config: DictConfig, data: HiddenStateDataModule) -> pl.Trainer:
    loggers = [build(node) for node in (config.get("logger") or {}).values()]
    callbacks = _callbacks(config, data)
    trainer: pl.Trainer = build(
        config["trainer"],
        logger=loggers or False,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        enable_checkpointing=any(isinstance(entry, ModelCheckpoint) for entry in callbacks),
    )
    steps = data.n_steps(trainer.world_size)
    share = trainer.val_check_interval
    if isinstance(share, float):
        trainer.val_check_interval = max(1, int(steps * share))
    return trainer


def _keep_last(trainer: pl.Trainer) -> None:
    """Make last.ckpt that of the last step; ModelCheckpoint saved at the last validation."""
    for entry in trainer.checkpoint_callbacks:
        if isinstance(entry, ModelCheckpoint) and entry.save_last and entry.dirpath:
            trainer.save_checkpoint(Path(entry.dirpath) / "last.ckpt")


def _held_out(
    trainer: pl.Trainer, learner: DictionaryLearner, data: HiddenStateDataModule
) -> dict[str, float]:
    """Validate once more after training; these are the figures that are reported."""
    if data.text.validation_fraction == 0:
        return {}
    (figures,) = trainer.validate(learner, datamodule=data, verbose=False)
    return {key: float(value) for key, value in figures.items()}


def _training_figures(
    trainer: pl.Trainer, learner: DictionaryLearner, data: HiddenStateDataModule
) -> dict[str, float]:
    throughput = next(c for c in trainer.callbacks if isinstance(c, Throughput))  # type: ignore[attr-defined]
    return {
        "train/vectors": float(learner.vectors_seen),
        "train/tokens": learner.vectors_seen / len(data.layers),
        "train/vectors_per_second": throughput.vectors_per_second(),
    }


def _leave(
    run_dir: Path,
    learner: DictionaryLearner,
    data: HiddenStateDataModule,
    values: dict[str, Any],
    figures: dict[str, float],
) -> None:
    save_dictionary(
        run_dir / "dictionary",
        learner.dictionary,
        learner.inference,
        data.normalization,
        about={
            "prox": values["prox"],
            "inference": values["inference"],
            "transformer": data.transformer.describe(),
            "text": {
                "source": data.text.name,
                "block_length": data.options.block_length,
                "special_tokens": data.options.special_tokens,
            },
            "metrics": figures,
        },
    )
    write_text(run_dir / "metrics.json", json.dumps(figures, indent=2, sort_keys=True) + "\n")
    log.info("The dictionary is in %s", run_dir / "dictionary")
