"""A training job of a second, for loggers to watch."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from torch import Tensor
from torch.utils.data import DataLoader

from dictlearn.loggers import RunReport, finish_loggers, log_artifact, log_config
from dictlearn.loggers.weights_and_biases import WandbRunLogger

CONFIG = {
    "seed": 0,
    "prox": {"_target_": "dictlearn.prox.TopK", "k": 16},
    "hidden_states": {"layers": [0, 2, 4], "path": None, "scale": {"kind": "center", "x": 0.5}},
}


class Tiny(pl.LightningModule):
    """A line through noise, with the attribute the histogram is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.line = torch.nn.Linear(4, 1)
        self.validation_firing_frequency = torch.zeros(6)

    def training_step(self, batch: Tensor, _: int) -> Tensor:
        loss: Tensor = self.line(batch).square().mean()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Tensor, _: int) -> None:
        self.log("val/fvu", self.line(batch).square().mean())

    def on_validation_epoch_end(self) -> None:
        self.validation_firing_frequency = torch.tensor([0.0, 0.0, 0.001, 0.01, 0.5, 1.0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def train_dataloader(self) -> "DataLoader[Any]":
        return DataLoader(torch.randn(32, 4), batch_size=2)  # type: ignore[arg-type]

    def val_dataloader(self) -> "DataLoader[Any]":
        return DataLoader(torch.randn(4, 4), batch_size=2)  # type: ignore[arg-type]


def trainer(loggers: Iterable[Logger], folder: Path, **arguments: Any) -> pl.Trainer:
    """A trainer of 16 steps: training figures every 4, validation every 8."""
    return pl.Trainer(
        logger=list(loggers),
        default_root_dir=folder,
        callbacks=[RunReport()],
        accelerator="cpu",
        max_epochs=1,
        log_every_n_steps=4,
        val_check_interval=8,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **arguments,
    )


def train(folder: Path, name: str = "first", **options: Any) -> None:
    """Record a run in W&B, as the training root does."""
    logger = WandbRunLogger(folder, name=name, **options)
    job = trainer([logger], folder)
    try:
        log_config(job.loggers, CONFIG)
        job.fit(Tiny())
        dictionary = folder / "dictionary"
        dictionary.mkdir()
        (dictionary / "config.json").write_text("{}")
        (dictionary / "dictionary.safetensors").write_bytes(b"atoms")
        log_artifact(job.loggers, dictionary, "factors of 16", {"val/fvu": 0.25})
    finally:
        finish_loggers(job.loggers)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the user is told; W&B's own records go to its own file, not to him."""
    told = [r for r in caplog.records if not r.name.startswith("wandb")]
    return [r.getMessage() for r in told if r.levelno >= logging.WARNING]
