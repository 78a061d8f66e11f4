"""The main job: fit, evaluate on held-out text, save the artefact. It knows all rooms."""

from __future__ import annotations

import functools
import json
import logging
import time
from pathlib import Path
from typing import Any, TypeVar

import pytorch_lightning as pl
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from dictlearn import processes
from dictlearn.callbacks.begun import KeepOptions
from dictlearn.callbacks.checkpoints import RunCheckpoints
from dictlearn.callbacks.left_out import LeftOut
from dictlearn.callbacks.memory import BatchThatFits, is_out_of_memory
from dictlearn.callbacks.signals import StopSignals, kill_children
from dictlearn.callbacks.throughput import Throughput
from dictlearn.callbacks.variants import callbacks
from dictlearn.composing import compose, compose_several, told_of
from dictlearn.configuration import known_keys, plain, redacted
from dictlearn.ensemble import DictionaryEnsemble, learners
from dictlearn.errors import NO_ROOM, InputError, Stopped, nearest, number, one_line, whole_number
from dictlearn.hidden_states import DataModule
from dictlearn.learner import DictionaryLearner
from dictlearn.loggers import finish_loggers, log_artifact, log_config
from dictlearn.mesh import data_processes, n_shards
from dictlearn.noise import quiet
from dictlearn.requeue import requeue
from dictlearn.resuming import checkpoint_to_go_on_from, refuse_finished
from dictlearn.sharding import check_shards
from dictlearn.stopping import in_sweep
from dictlearn.storage.atomic import write_text
from dictlearn.storage.committed import failure_of
from dictlearn.storage.saved import save_dictionary
from dictlearn.trainer import build_trainer
from dictlearn.variants import branch_of, named, own_figures, place_of, variant_configs

log = logging.getLogger(__name__)

Learner = DictionaryLearner | DictionaryEnsemble
Hung = TypeVar("Hung", bound=pl.Callback)


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
    values = redacted(plain(config))
    _refuse_unknown(values)
    seed = number("seed", whole_number("seed", config.seed, 0), 0, 2**32 - 1)  # as numpy wants it
    pl.seed_everything(int(seed), verbose=False)
    checkpoint = checkpoint_to_go_on_from(run_dir, config.resume)
    variants, branch_at = variant_configs(config), branch_of(config)
    learner: Learner
    if variants:
        learner, data = compose_several(config, values, variants, branch_at)
    else:
        learner, data = compose(config, values)
    trainer = build_trainer(config, data, start, run_dir, callbacks(config, variants, run_dir))
    if (shards := n_shards(trainer)) > 1:
        for name, part in learners(learner).items():
            with told_of(name):
                check_shards(part, shards)
    refuse_finished(checkpoint, data.n_steps(data_processes(trainer)), run_dir)
    for callback in _saving(trainer):
        callback.also.append(lambda: _save(run_dir, learner, data, {}))
        callback.ends_process = not in_sweep()
    try:
        log_config(trainer.loggers, values)
        trainer.fit(learner, datamodule=data, ckpt_path=checkpoint and checkpoint.path)
        # What is left takes seconds: a signal waits for it, and only a second one does not.
        with StopSignals(lambda: kill_children(trainer)):
            figures = _conclude(config, trainer, learner, data, run_dir)
    except BaseException as error:  # the loggers are closed however it ends
        finish_loggers(trainer.loggers, failed=not isinstance(error, Stopped))
        wanted = isinstance(error, Stopped) and error.requeue and not in_sweep()
        if wanted and trainer.is_global_zero:
            requeue()
        if isinstance(error, MisconfigurationException):
            raise InputError(one_line(error)) from error
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise InputError(
                f"{run_dir} cannot be written ({error.strerror}): make room on that disk, then go "
                "on with run=DIR resume=true."
            ) from error
        if is_out_of_memory(error):
            fits = _hung(trainer, BatchThatFits).vectors
            raise InputError(_too_large(config, data, trainer.global_step, fits)) from error
        raise
    finish_loggers(trainer.loggers)
    return figures


def _conclude(
    config: DictConfig, trainer: pl.Trainer, learner: Learner, data: DataModule, run_dir: Path
) -> dict[str, float]:
    """Measure and save what was learned; return the figures of ``metrics.json``."""
    _hung(trainer, KeepOptions).keep(trainer)
    if trainer.global_step < (steps := data.n_steps(data_processes(trainer))):
        log.warning(
            "The run ends after step %d of %d, as trainer.max_time or another limit of the trainer "
            "has it: run=DIR resume=true with another one goes on.",
            *(trainer.global_step, steps),
        )
    if missing := learners(learner).keys() - learners(learner, acting=True).keys():
        log.warning(
            "The run ends before the variants part: there is no %s.", ", ".join(sorted(missing))
        )
    figures = _held_out(trainer, learner, data)
    for callback in _saving(trainer):
        callback.finish(trainer)
    figures |= _training_figures(trainer, learner, data)
    _save(run_dir, learner, data, figures)
    if trainer.is_global_zero:
        _leave(run_dir, learner, figures)
        for name in learners(learner, acting=True):
            title = f"{config.name}-{name}" if name else config.name
            own, folder = own_figures(figures, name), place_of(run_dir, name) / "dictionary"
            log_artifact(trainer.loggers, folder, title, own)
    trainer.strategy.barrier()
    return figures


def _too_large(config: DictConfig, data: DataModule, step: int, fits: int | None) -> str:
    n, m = data.options.batch_size, int(config.dictionary.n_atoms)
    inference = str(config.inference["_target_"]).rpartition(".")[2]
    found = f" ({fits} vectors fit)" if fits else ""
    return (
        f"The memory is full at step {step}, with hidden_states.batch_size={n} vectors of width "
        f"{data.hidden_size}, dictionary.n_atoms={m} and {inference} (one dense table of codes "
        f"alone has {4 * n * m / 2**20:,.1f} MiB): lower hidden_states.batch_size first{found}, "
        "then dictionary.n_atoms."
    )


def _refuse_unknown(values: dict[str, Any]) -> None:
    names = known_keys("train")
    for key in values:
        if key not in names:
            raise InputError(f"There is no option '{key}'.{nearest(key, names)}")


def _saving(trainer: pl.Trainer) -> list[RunCheckpoints]:
    return [entry for entry in trainer.checkpoint_callbacks if isinstance(entry, RunCheckpoints)]


def _hung(trainer: pl.Trainer, kind: type[Hung]) -> Hung:
    return next(entry for entry in trainer.callbacks if isinstance(entry, kind))  # type: ignore[attr-defined]


def _held_out(trainer: pl.Trainer, learner: Learner, data: DataModule) -> dict[str, float]:
    """Return the figures of the final dictionary, validating once more unless it was just done;
    none where that is not wanted, whatever a run that goes on had before.
    """  # noqa: D205
    if learner.held_out_figures and learner.validated_at != trainer.global_step:
        trainer.validate(learner, datamodule=data, verbose=False)
    if learner.validated_at != trainer.global_step:  # no validation is wanted any more
        return {}
    return learner.held_out_figures


def _training_figures(trainer: pl.Trainer, learner: Learner, data: DataModule) -> dict[str, float]:
    throughput, left_out = _hung(trainer, Throughput), _hung(trainer, LeftOut)
    optimizer: Any = next(iter(trainer.optimizers), None)
    optimizers = getattr(optimizer, "parts", [optimizer])
    skipped = {
        named(name, "train/skipped_steps"): float(getattr(own, "skipped", 0))
        for name, own in zip(learners(learner), optimizers, strict=False)
        if name in learners(learner, acting=True)
    }
    return skipped | {
        "train/non_finite_tokens": float(len(processes.union(data.non_finite))),
        "train/left_out_fraction": left_out.fraction(trainer),
        "train/vectors": float(learner.vectors_seen),
        "train/tokens": float(learner.vectors_seen // len(data.layers)),
        "train/vectors_per_second": throughput.vectors_per_second(),
        "seconds/saving": throughput.saved_before
        + sum(callback.saving.seconds for callback in _saving(trainer)),
        "seconds/total": throughput.total_seconds(),
    }


def _save(run_dir: Path, learner: Learner, data: DataModule, figures: dict[str, float]) -> None:
    """Write the artefacts as they are now, on all processes together: each may hold a part.

    `figures` are known at the end only.

    Raises:
        OSError: one could not be written; the others are.
    """
    failures = [
        failure_of([functools.partial(_save_one, run_dir, name, part, data, figures)])
        for name, part in learners(learner, acting=True).items()
    ]
    for failure in failures:  # not before: the processes exchange what each of them is made of
        if failure is not None:
            raise failure


def _save_one(
    run_dir: Path, name: str, part: DictionaryLearner, data: DataModule, figures: dict[str, float]
) -> None:
    values = part.hparams["config"]
    prox = dict(values["prox"])
    if part.price is not None:  # what it was steered to is the price from now on
        prox |= {"lambda_": float(part.price.lambda_), "target_l0": None}
    save_dictionary(
        place_of(run_dir, name) / "dictionary",
        part.dictionary,
        part.inference,
        data.normalization,
        about={
            "prox": prox,
            "inference": values["inference"],
            **data.about(),
            "metrics": own_figures(figures, name),
        },
        prox=part.prox,
        write=part.mesh.is_first,
    )
    if name and part.mesh.is_first:  # as a run of its own would have it
        path = place_of(run_dir, name) / ".hydra" / "config.yaml"
        write_text(path, OmegaConf.to_yaml(OmegaConf.create(values)))


def _leave(run_dir: Path, learner: Learner, figures: dict[str, float]) -> None:
    acting = learners(learner, acting=True)
    for name in [*filter(None, acting), ""]:  # the last one says that the run has finished
        text = json.dumps(own_figures(figures, name), indent=2, sort_keys=True) + "\n"
        write_text(place_of(run_dir, name) / "metrics.json", text)
    for name in acting:
        log.info("The dictionary is in %s", place_of(run_dir, name) / "dictionary")
