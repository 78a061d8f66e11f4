"""When a run is saved, and how it stops: between two steps, on all processes at the same one."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

from dictlearn.callbacks.agreement import Agreement
from dictlearn.callbacks.loops import set_between_steps, validates_after
from dictlearn.callbacks.random_state import random_states, restore_random_state
from dictlearn.callbacks.same_options import refuse_other_options
from dictlearn.callbacks.signals import StopSignals, kill_children
from dictlearn.callbacks.stopwatch import Stopwatch
from dictlearn.ensemble import learners
from dictlearn.errors import InputError, Stopped, choice, number, whole_number
from dictlearn.loggers import history_rows, rewind
from dictlearn.mesh import data_processes
from dictlearn.storage import committed as storage
from dictlearn.storage.checkpoint import AtomicCheckpointIO

log = logging.getLogger(__name__)

FORMAT = 1
BEFORE, AFTER, FINISHED = "before validation", "after validation", "finished"
_ENDINGS = {BEFORE: "-unvalidated", AFTER: "", FINISHED: "-finished"}


class RunCheckpoints(Checkpoint):
    """Saves everything that is needed to go on exactly, and stops the run when it is asked to.

    A run is saved every so many steps and minutes, around every validation, at the end, and when
    a signal (SIGTERM, SIGINT, SIGUSR1) asks it to stop: all processes save at the same step and end
    by `Stopped`; a second signal ends a process at once. Checkpoints count with their manifest.

    Args:
        run_dir: the run directory; checkpoints lie in ``checkpoints/`` below it.
        every_steps: training steps between checkpoints; None: none for the sake of steps.
        every_minutes: minutes between checkpoints; None: none for the sake of time.
        keep: newest checkpoints kept beside the best; at least 2, one may turn out damaged.
        monitor: the held-out figure by which the best checkpoint is chosen; None: none is.
        mode: whether the best is the `min` or the `max`.
        max_failures: checkpoints in a row that fail (a full disk) before the run ends.
        requeue: whether a job of SLURM is put back into the queue when SIGUSR1 announces its end.

    Attributes:
        also: what else is done at every checkpoint, after it counts; called by all processes.
        saving: how long saving has taken so far, with what else is written.
        ends_process: whether the process ends with a run that is stopped, and listens to its end.

    Raises:
        InputError: a value is not allowed.
    """

    def __init__(
        self,
        run_dir: str | Path,
        every_steps: int | None = None,
        every_minutes: float | None = 10,
        keep: int = 2,
        monitor: str | None = "val/fvu",
        mode: str = "min",
        max_failures: int = 3,
        requeue: bool = True,
    ) -> None:
        name = "callbacks.checkpoint."
        self.folder = Path(run_dir) / "checkpoints"
        self.every_steps = every_steps and whole_number(name + "every_steps", every_steps)
        self.every_minutes = every_minutes and number(name + "every_minutes", every_minutes, 0.01)
        self.keep = whole_number(name + "keep", keep, 2)
        self.monitor = monitor
        self.mode = choice(name + "mode", mode, ("min", "max"))
        self.max_failures = whole_number(name + "max_failures", max_failures)
        self.requeue = requeue
        self.also: list[Callable[[], object]] = []
        self.saving = Stopwatch()
        self.ends_process = False
        self._signals = StopSignals()
        self._agreement: Agreement | None = None
        self._best: float | None = None
        self._stage = BEFORE
        self._saved_step = self._number = self._failures = 0
        self._saved_at = 0.0
        self._random: list[dict[str, Any]] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Clear away what a killed process left half done."""
        if stage == "fit" and trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            storage.tidy(self.folder)
            numbers = [entry.number for entry in storage.committed(self.folder)]
            self._number = max(numbers, default=0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen to signals, in the place of Lightning.

        Raises:
            InputError: there is no figure by the name of `monitor`.
        """
        for learner in learners(pl_module).values() if self.monitor is not None else ():
            choice("callbacks.checkpoint.monitor", self.monitor, learner.held_out.names)
        restore_random_state(self._random, trainer.global_rank)
        if trainer.global_step == 0:
            rewind(trainer.loggers, [0], 0)  # of one that was killed before its first checkpoint
        self._signals = StopSignals(lambda: kill_children(trainer))
        self._signals.install()
        self._agreement = Agreement(trainer.world_size, n_flags=2)
        self._saved_at = time.monotonic()
        # Lightning tells the other processes of a SIGTERM at every batch: a collective and a wait.
        loop: Any = trainer.fit_loop.epoch_loop
        if hasattr(loop, "_broadcast_sigterm_tensor"):
            loop._broadcast_sigterm_tensor = lambda: None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time to, and stop if a process was asked to."""
        asked, late = self._ask()
        step = trainer.global_step
        regular = self.every_steps and step % self.every_steps == 0
        late &= step - 1 > self._saved_step  # or it is the answer to what was asked before
        if (asked or late or regular) and step > self._saved_step:
            self.save(trainer, AFTER)
        if asked and step > 0:  # before the first step there is nothing to go on from
            self._stop(trainer, asked)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, so that a stop during a long validation loses no step."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.save(trainer, BEFORE)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Stop if a process was asked to; the checkpoint is there."""
        if self._agreement is not None and trainer.state.fn == "fit":
            asked, _ = self._ask()
            if asked:
                self._stop(trainer, asked)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save with the held-out figures, and keep this one if it is the best."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            before, better = self._best, self._is_better(trainer)
            self.save(trainer, AFTER, best=better)
            if self._failures:
                self._best = before  # there is no checkpoint of this one

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, since a validation may follow that takes long; let the signals go."""
        if trainer.global_step > self._saved_step:
            self.save(trainer, AFTER)
        if self._agreement is not None:
            self._agreement.close()
        self._leave()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Let the signals go, if anything comes after this."""
        if not (self.ends_process and isinstance(exception, Stopped)):
            self._leave()

    def finish(self, trainer: pl.Trainer) -> None:
        """Save the last state of a run, after its last validation; called by all processes."""
        self.save(trainer, FINISHED)

    def save(self, trainer: pl.Trainer, stage: str, best: bool = False) -> None:
        """Write a checkpoint now; called by all processes.

        Args:
            trainer: of the run.
            stage: where between two steps the run is.
            best: whether it also becomes the best checkpoint.

        Raises:
            InputError: it could not be written, too often.
        """
        with self.saving:
            step, self._stage = trainer.global_step, stage
            self._number += 1
            path = self.folder / f"step={step:08d}{_ENDINGS[stage]}.ckpt"
            failure: OSError | None = None
            if trainer.is_global_zero:
                failure = storage.failure_of([lambda: storage.manifest_of(path).unlink(True)])
            try:
                trainer.save_checkpoint(path)
            except OSError as error:  # of process 0, which writes; the others wait for it
                failure = error
                trainer.strategy.barrier("Trainer.save_checkpoint")
            if trainer.is_global_zero and failure is None:
                failure = storage.failure_of([lambda: self._commit(trainer, path, step, best)])
            failed = trainer.strategy.broadcast(failure is not None)
            lost = None if failed else storage.failure_of(self.also)
            if lost is not None:
                log.warning("%s is whole, what goes with it could not be written: %s", path, lost)
            self._saved_step, self._saved_at = step, time.monotonic()
        if failed:
            self._missed(path, failure)
        else:
            self._failures = 0

    def _commit(self, trainer: pl.Trainer, path: Path, step: int, best: bool) -> None:
        files = trainer.strategy.checkpoint_io
        assert isinstance(files, AtomicCheckpointIO)
        assert files.digest is not None
        entry = storage.commit(path, step, self._number, files.digest)
        storage.also_known_as(entry, storage.LAST)
        name = f"best-step={step}.ckpt" if best else ""
        if best:
            storage.commit(storage.also_known_as(entry, name), step, self._number, entry.digest)
        for old in storage.superseded(storage.committed(self.folder), self.keep, name):
            storage.remove(old)

    def _missed(self, path: Path, failure: OSError | None) -> None:
        self._failures += 1
        if failure is not None:
            log.warning("%s", storage.not_written(path, failure))
        if self._failures >= self.max_failures:
            raise InputError(
                f"{self._failures} checkpoints in a row could not be written to {self.folder}: "
                "make room on that disk, then go on with run=DIR resume=true."
            )

    def _is_better(self, trainer: pl.Trainer) -> bool:
        value = float(trainer.callback_metrics.get(self.monitor or "", math.nan))
        worse = self._best is not None and (value < self._best) != (self.mode == "min")
        if value != value or worse or value == self._best:
            return False
        self._best = value
        return True

    def _ask(self) -> tuple[int, bool]:
        """Return the signal that a process received, or 0, and whether it is time to save."""
        assert self._agreement is not None
        received = self._signals.received
        late = time.monotonic() - self._saved_at >= 60 * (self.every_minutes or math.inf)
        asked, is_late = self._agreement.ask((0 if received is None else int(received), int(late)))
        return asked, bool(is_late)

    def _stop(self, trainer: pl.Trainer, asked: int) -> None:
        if self._agreement is not None:
            self._agreement.close()
        again = self.requeue and asked == signal.SIGUSR1
        name, step = signal.Signals(asked).name, trainer.global_step
        raise Stopped(f"stopped by {name} after step {step}", requeue=again)

    def _leave(self) -> None:
        self._signals.remove()
        self._agreement = None

    def state_dict(self) -> dict[str, Any]:
        """Return the best figure so far."""
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it up."""
        self._best = state_dict["best"]

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note where the run is, how long its history is, and the random states of all."""
        checkpoint["run"] = {
            "format": FORMAT,
            "stage": self._stage,
            "history_rows": history_rows(trainer.loggers),
            "random": random_states(trainer.world_size),
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Set Lightning's counters right, and drop what the history has beyond the checkpoint.

        Raises:
            InputError: the checkpoint is from a newer version of this library, or of other options.
        """
        known = checkpoint.get("run", {})
        if known.get("format") != FORMAT:
            raise InputError(
                f"The checkpoint has format {known.get('format')}, this version reads {FORMAT}: "
                "update transformer-factors, or go on with the version that wrote it."
            )
        before = checkpoint.get("hyper_parameters", {}).get("config", {})
        refuse_other_options(before, pl_module.hparams.get("config", {}))
        step = int(checkpoint["global_step"])
        n_steps = trainer.datamodule.n_steps(data_processes(trainer))  # type: ignore[attr-defined]
        due, to_come = validates_after(trainer, step, n_steps), known["stage"] == BEFORE
        if step < n_steps or (due and to_come):
            set_between_steps(checkpoint["loops"], step, n_steps, due, to_come)
        self._saved_step, self._random = step, known["random"]
        rewind(trainer.loggers, known["history_rows"], step)
