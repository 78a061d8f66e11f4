"""The history for TensorBoard; needs the extra of that name."""

from __future__ import annotations

import importlib.util
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only

from dictlearn.errors import InputError


class TensorBoardRunLogger(TensorBoardLogger):
    """Writes event files under `tensorboard/` in the run directory.

    Args:
        save_dir: the run directory.

    Raises:
        InputError: TensorBoard is not installed.
    """

    def __init__(self, save_dir: str | Path) -> None:
        if not _installed():
            raise InputError(
                "logger=tensorboard needs TensorBoard: "
                "pip install 'transformer-factors[tensorboard]'."
            )
        super().__init__(save_dir, name="tensorboard", version="", default_hp_metric=False)

    @rank_zero_only
    def log_hyperparams(
        self,
        params: dict[str, Any] | Namespace,
        metrics: dict[str, Any] | None = None,
        step: int | None = None,
    ) -> None:
        """Keep the config as `hparams.yaml` and show it as text, nested as it is."""
        super().log_hyperparams(params, metrics, step)
        values = vars(params) if isinstance(params, Namespace) else dict(params)
        lines = json.dumps(values, indent=2, default=str).splitlines()
        # Four spaces: how Markdown, which TensorBoard renders, marks a block of code.
        self.experiment.add_text("config", "\n".join(f"    {line}" for line in lines), step)

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Have TensorBoard hide what was logged from `step` on: a killed run goes on from there."""
        if self._experiment is not None:
            self._experiment.close()
            self._experiment = None
        self._kwargs["purge_step"] = step  # of the writer that the next row opens


def _installed() -> bool:
    return importlib.util.find_spec("tensorboard") is not None
