"""The main job: fit, evaluate on held-out text, save the artefact. It knows all rooms."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from pytorch_lightning.callbacks import ModelCheckpoint, ProgressBar

from dictlearn.callbacks.throughput import Throughput
from dictlearn.configuration import build, known_keys, plain
from dictlearn.dictionary import Dictionary
from dictlearn.errors import InputError, nearest, number, whole_number
from dictlearn.hidden_states import HiddenStateDataModule
from dictlearn.learner import DictionaryLearner
from dictlearn.loggers import finish_loggers, log_artifact, log_config
from dictlearn.mesh import data_processes, n_shards
from dictlearn.noise import quiet
from dictlearn.sharding import check_shards
from dictlearn.storage.atomic import write_text
from dictlearn.storage.checkpoint import AtomicCheckpointIO
from dictlearn.storage.saved import load, save_dictionary

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
    _refuse_used(run_dir)
    trainer = _trainer(config, data)
    if (shards := n_shards(trainer)) > 1:
        check_shards(learner, shards)
    try:
        log_config(trainer.loggers, values)
        trainer.fit(learner, datamodule=data)
        _keep_last(trainer)
        figures = _held_out(trainer, learner, data)
        figures |= _training_figures(trainer, learner, data)
        figures["seconds/total"] = time.perf_counter() - start
        _leave(run_dir, learner, data, values, figures)
        if trainer.is_global_zero:
            log_artifact(trainer.loggers, run_dir / "dictionary", config.name, figures)
        trainer.strategy.barrier()
    except BaseException as error:
        finish_loggers(trainer.loggers, failed=True)
        if isinstance(error, MisconfigurationException):
            raise InputError(" ".join(str(error).split())) from error
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
    loss = build(config["loss"])
    options = build(config["hidden_states"])
    text = build(config["text"])
    transformer = build(config["transformer"])
    dictionary = _dictionary(config, transformer.hidden_size)
    learner = DictionaryLearner(
        dictionary,
        prox,
        inference,
        update,
        loss,
        max_vectors=max_vectors,
        seed=config.seed,
        config=values,
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


def _dictionary(config: DictConfig, width: int) -> Dictionary:
    """Build the dictionary; with a path it starts from one that is there already."""
    dictionary: Dictionary = build(config["dictionary"], width=width, seed=config.seed)
    if dictionary.path is not None:
        dictionary.start_from(load(dictionary.path).dictionary)
    return dictionary


def _refuse_used(run_dir: Path) -> None:
    """Two runs in one directory would mix their histories."""
    if (run_dir / "metrics.json").exists():
        raise InputError(f"{run_dir} already holds a run: give another hydra.run.dir=DIR.")


def _refuse_unknown(values: dict[str, Any]) -> None:
    names = known_keys("train")
    for key in values:
        if key not in names:
            raise InputError(f"There is no option '{key}'.{nearest(key, names)}")


def _validates(config: DictConfig, data: HiddenStateDataModule) -> bool:
    """Tell whether any text is held out; if not, say that there will be no held-out figures."""
    held_out = data.text.validation_fraction and data.options.validation_vectors
    if held_out and config.trainer.limit_val_batches:
        return True
    log.warning("Nothing is held out: there will be no validation and no held-out figures.")
    return False


def _callbacks(config: DictConfig, validates: bool) -> list[pl.Callback]:
    callbacks = [build(node) for node in (config.get("callbacks") or {}).values()]
    if not config.trainer.enable_progress_bar:
        callbacks = [entry for entry in callbacks if not isinstance(entry, ProgressBar)]
    if not validates:
        for entry in callbacks:
            if isinstance(entry, ModelCheckpoint):
                entry.monitor = None  # only the last state is kept
    return [*callbacks, Throughput()]


def _trainer(config: DictConfig, data: HiddenStateDataModule) -> pl.Trainer:
    whole_number("trainer.log_every_n_steps", config.trainer.log_every_n_steps)
    share = number("trainer.val_check_interval", config.trainer.val_check_interval, 1e-6)
    loggers = [build(node) for node in (config.get("logger") or {}).values()]
    callbacks = _callbacks(config, _validates(config, data))
    trainer: pl.Trainer = build(
        config["trainer"],
        max_epochs=1,  # the budget is max_vectors: one epoch is the whole run
        logger=loggers or False,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        enable_checkpointing=any(isinstance(entry, ModelCheckpoint) for entry in callbacks),
    )
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
    every = int(steps * share) if share <= 1 else int(share)
    trainer.val_check_interval = max(1, min(every, steps))
    return trainer


def _keep_last(trainer: pl.Trainer) -> None:
    """Make last.ckpt that of the last step; ModelCheckpoint saved at the last validation."""
    for entry in trainer.checkpoint_callbacks:
        if isinstance(entry, ModelCheckpoint) and entry.save_last and entry.dirpath:
            trainer.save_checkpoint(Path(entry.dirpath) / "last.ckpt")


def _held_out(
    trainer: pl.Trainer, learner: DictionaryLearner, data: HiddenStateDataModule
) -> dict[str, float]:
    """Return the figures of the final dictionary, validating once more unless it was just done."""
    if learner.held_out_figures and learner.validated_at != trainer.global_step:
        trainer.validate(learner, datamodule=data, verbose=False)
    return learner.held_out_figures


def _training_figures(
    trainer: pl.Trainer, learner: DictionaryLearner, data: HiddenStateDataModule
) -> dict[str, float]:
    throughput = next(c for c in trainer.callbacks if isinstance(c, Throughput))  # type: ignore[attr-defined]
    return {
        "train/vectors": float(learner.vectors_seen),
        "train/tokens": float(learner.vectors_seen // len(data.layers)),
        "train/vectors_per_second": throughput.vectors_per_second(),
    }


def _leave(
    run_dir: Path,
    learner: DictionaryLearner,
    data: HiddenStateDataModule,
    values: dict[str, Any],
    figures: dict[str, float],
) -> None:
    prox = dict(values["prox"])
    if learner.price is not None:  # what it was steered to is the price from now on
        prox |= {"lambda_": float(learner.price.lambda_), "target_l0": None}
    save_dictionary(
        run_dir / "dictionary",
        learner.dictionary,
        learner.inference,
        data.normalization,
        about={
            "prox": prox,
            "inference": values["inference"],
            "transformer": data.transformer.describe(),
            "text": {
                "source": data.text.name,
                "block_length": data.options.block_length,
                "special_tokens": data.options.special_tokens,
            },
            "metrics": figures,
        },
        write=learner.mesh.is_first,
    )
    if not learner.mesh.is_first:
        return
    write_text(run_dir / "metrics.json", json.dumps(figures, indent=2, sort_keys=True) + "\n")
    log.info("The dictionary is in %s", run_dir / "dictionary")
