"""What a person sees while it runs: the bar, and one line in the log at every validation."""

from __future__ import annotations

import logging

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar

log = logging.getLogger(__name__)

SHOWN = {
    "train/fvu": ("FVU", "{:.3f}"),
    "train/l0": ("L0", "{:.1f}"),
    "train/dead_fraction": ("dead", "{:.1%}"),
    "train/vectors_per_second": ("vectors/s", "{:,.0f}"),
}


class FactorProgressBar(RichProgressBar):
    """Lightning's rich bar with FVU, L0, dead atoms and vectors per second, and the time left.

    Args:
        refresh_rate: steps between redraws.
    """

    def __init__(self, refresh_rate: int = 1) -> None:
        super().__init__(refresh_rate=refresh_rate, leave=True)
        self._shown: dict[str, int | str | float | dict[str, float]] | None = None

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Return the newest training figures, formatted."""
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self._shown is not None and trainer.global_step % every > 1:
            return self._shown  # nothing new, and to read it would wait for the GPU
        logged = trainer.callback_metrics
        shown: dict[str, int | str | float | dict[str, float]] = {
            name: form.format(float(logged[key]))
            for key, (name, form) in SHOWN.items()
            if key in logged
        }
        ending = "/train/fvu"  # of a run that learns several dictionaries
        several = (key for key in logged if key.endswith(ending))
        fvu = {f"{key.removesuffix(ending)} FVU": f"{float(logged[key]):.3f}" for key in several}
        self._shown = shown | fvu
        return self._shown


class ValidationLines(pl.Callback):
    """One line in the log at every validation: where the run is, and the held-out figures.

    Args:
        name: of the dictionary, where a run learns several.
    """

    def __init__(self, name: str = "") -> None:
        self.lead = f"{name}: " if name else ""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the line, on process 0."""
        figures = {key: float(value) for key, value in trainer.callback_metrics.items()}
        if trainer.sanity_checking or not trainer.is_global_zero or "val/fvu" not in figures:
            return
        log.info(
            "%sstep %d of %s: held-out FVU %.4f, L0 %.1f, cosine %.3f, dead %.1f %%",
            self.lead,
            trainer.global_step,
            trainer.num_training_batches,
            figures["val/fvu"],
            figures["val/l0"],
            figures["val/cosine"],
            100 * figures["val/dead_fraction"],
        )
