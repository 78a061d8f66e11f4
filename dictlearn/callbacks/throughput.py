"""How fast training is and where its time goes, with saving and without validation."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import pytorch_lightning as pl
import torch

from dictlearn.callbacks.checkpoints import RunCheckpoints
from dictlearn.callbacks.stopwatch import Stopwatch, await_gpu
from dictlearn.callbacks.utilisation import model_flops, multiplication_ceiling
from dictlearn.ensemble import learners
from dictlearn.mesh import mesh_of

PHASES = ("waiting", "inference", "update")


class Throughput(pl.Callback):
    """Measures training speed between logged steps and over the whole run.

    ``train/vectors_per_second`` and ``train/tokens_per_second`` count all processes; the time of
    validation and of saving is left out, that of extraction is in. Shares of the time of this
    process, that of saving included, are

    - ``time/extraction``: the transformer at work, or a cache being read; in the background too;
    - ``time/waiting``: training waits for vectors. Without a background thread that is all of the
      extraction; what is less than the extraction went on beside training;
    - ``time/inference``: codes are inferred; ``time/update``: the rest of the step;
    - ``time/saving``: checkpoints and artefacts are written, those around a validation too.

    Waiting, inference, update and saving together are 1.

    ``memory/peak_mib`` is the largest memory so far: of CUDA where there is one, else resident. On
    CUDA ``train/flop_utilisation`` is the share of the measured ceiling of this GPU
    (`utilisation`), and phases are measured at the logged steps alone, with the device awaited.
    A run that goes on counts on.

    Args:
        started: when the run began, by `time.perf_counter`; now if None.

    Attributes:
        saved_before: seconds that saving took in the processes that this one goes on from.
    """

    def __init__(self, started: float | None = None) -> None:
        self._started = time.perf_counter() if started is None else started
        self._earlier = self.saved_before = 0.0
        self.seconds = 0.0
        self._since: float | None = None
        self._saving: list[Stopwatch] = []
        self._window_seconds = self._window_saved = 0.0
        self._window_vectors = 0
        self._looks = 0  # vectors times the atoms that learned from them, since the last figures
        self.vectors = 0
        self._phases = dict.fromkeys(PHASES, 0.0)
        self._extracted = self._mark = self._inferring = 0.0
        self._ceiling = 0.0
        self._peak = 0
        self._awaited: torch.device | None = None

    def _saved(self) -> float:
        return sum(stopwatch.seconds for stopwatch in self._saving)

    def _now(self) -> float:
        """Return the time by a clock that stands still while the run is saved."""
        return time.perf_counter() - self._saved()

    def _pause(self) -> None:
        if self._since is not None:
            await_gpu()
            self.seconds += self._now() - self._since
            self._since = None

    def _run(self) -> None:
        self._since = self._now()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        if pl_module.device.type == "cuda":
            self._peak = torch.cuda.max_memory_allocated(pl_module.device)
            self._ceiling = multiplication_ceiling(pl_module.device)
            torch.cuda.reset_peak_memory_stats(pl_module.device)  # that was not of the run
        for learner in learners(pl_module).values():
            learner.inference.register_forward_pre_hook(self._inference_begins)
            learner.inference.register_forward_hook(self._inference_ends)
        self._extracted = _extraction_seconds(trainer)
        savers = trainer.checkpoint_callbacks
        self._saving = [entry.saving for entry in savers if isinstance(entry, RunCheckpoints)]
        self._window_saved = self._saved()
        self._run()
        self._mark = self._now()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note how long the batch was waited for."""
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        sampled = pl_module.device.type == "cuda" and (batch_idx + 1) % every == 0
        self._awaited = pl_module.device if sampled else None
        self._phases["waiting"] += self._lap()

    def _inference_begins(self, module: Any, given: Any) -> None:
        if self._since is not None and module.training:
            self._phases["update"] += self._lap()

    def _inference_ends(self, module: Any, given: Any, found: Any) -> None:
        if self._since is not None and module.training:
            self._phases["inference"] += self._lap()

    def _lap(self) -> float:
        """Return the seconds since the last call, with the device awaited where it is sampled."""
        if self._awaited is not None:
            torch.cuda.synchronize(self._awaited)
        before, self._mark = self._mark, self._now()
        return self._mark - before

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock while validation runs."""
        self._pause()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on."""
        if trainer.state.fn == "fit":
            self._run()
            self._mark = self._now()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        self._pause()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count the batch, and log the figures since the last logged step."""
        self._phases["update"] += self._lap()
        vectors = len(batch.vectors) * mesh_of(trainer).data.count
        self.vectors += vectors
        acting = learners(pl_module, acting=True).values()
        self._looks += vectors * sum(learner.dictionary.n_atoms for learner in acting)
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (batch_idx + 1) % every == 0:
            self._pause()
            self._run()
            pl_module.log_dict(self._window(trainer, pl_module), rank_zero_only=True)
        if pl_module.device.type == "cuda" and (batch_idx + 2) % every == 0:
            await_gpu()  # so that what is left to do is none of the step that is sampled next
            self._mark, self._phases = self._now(), dict.fromkeys(PHASES, 0.0)

    def _window(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, float]:
        """Return the figures since the last call, and begin anew."""
        seconds = max(self.seconds - self._window_seconds, 1e-9)
        vectors = self.vectors - self._window_vectors
        self._window_vectors, self._window_seconds = self.vectors, self.seconds
        extracted, self._extracted = self._extracted, _extraction_seconds(trainer)
        saved, self._window_saved = self._window_saved, self._saved()
        saving = self._window_saved - saved
        whole = seconds + saving
        # On CUDA phases are those of one step; each is given as a share of all of them.
        share = seconds / whole / max(sum(self._phases.values()), 1e-9)
        figures = {f"time/{name}": spent * share for name, spent in self._phases.items()}
        self._phases = dict.fromkeys(PHASES, 0.0)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        n_layers = len(getattr(data, "layers", (0,)))
        figures |= {
            "time/saving": saving / whole,
            "time/extraction": (self._extracted - extracted) / whole,
            "train/vectors_per_second": vectors / seconds,
            "train/tokens_per_second": vectors / n_layers / seconds,
            "memory/peak_mib": max(self._peak, peak_memory(pl_module.device)) / 2**20,
        }
        looks, self._looks = self._looks, 0
        if self._ceiling and looks:
            # The work of all processes: vectors and atoms are those of all, the transformer's too.
            flops = model_flops(data.hidden_size, data.blocks_run, vectors / n_layers, looks)
            whole_ceiling = self._ceiling * trainer.world_size
            figures["train/flop_utilisation"] = flops / seconds / whole_ceiling
        return figures

    def vectors_per_second(self) -> float:
        """Return the mean speed of the whole run."""
        return self.vectors / max(self.seconds, 1e-9)

    def total_seconds(self) -> float:
        """Return how long the run has taken, with everything, in all processes it went on in."""
        return self._earlier + time.perf_counter() - self._started

    def state_dict(self) -> dict[str, Any]:
        """Return what was counted so far."""
        running = 0.0 if self._since is None else self._now() - self._since
        return {
            "seconds": self.seconds + running,
            "vectors": self.vectors,
            "total": self.total_seconds(),
            "saving_seconds": self.saved_before + self._saved(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on from there."""
        self.seconds = self._window_seconds = float(state_dict["seconds"])
        self.vectors = self._window_vectors = int(state_dict["vectors"])
        self._earlier = float(state_dict["total"])
        self.saved_before = float(state_dict.get("saving_seconds", 0.0))


def peak_memory(device: torch.device) -> int:
    """Return the largest memory that this process has held so far, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else held * 1024


def _extraction_seconds(trainer: pl.Trainer) -> float:
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    return float(getattr(data, "extraction_seconds", 0.0))
