"""A tiny real run: real text, the embedded transformer, hidden states 0 and 3, blocks of 16."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from dictlearn.dictionary import Dictionary
from dictlearn.hidden_states import DataModule, HiddenStateDataModule, StreamOptions
from dictlearn.inference import Inference, Unrolled
from dictlearn.learner import DictionaryLearner
from dictlearn.losses import Loss
from dictlearn.noise import quiet
from dictlearn.prox import Prox, TopK
from dictlearn.storage.checkpoint import AtomicCheckpointIO
from dictlearn.storage.saved import save_dictionary
from dictlearn.text import LocalText
from dictlearn.transformer import FrozenTransformer
from dictlearn.update import Adam, UpdateRule

LAYERS = (0, 3)
BATCH, STEPS = 128, 12


@cache
def embedded(path: str) -> FrozenTransformer:
    """The transformer in this folder in float32, loaded once a process."""
    made = FrozenTransformer(path, dtype="float32")
    made.load()
    return made


def small_data(
    model: Path, text: Path, data_dir: Path, *, steps: int = 20, **options: Any
) -> HiddenStateDataModule:
    """A stream over the first documents of a folder, for so many steps of one process."""
    chosen: dict[str, Any] = {
        "layers": LAYERS,
        "batch_size": BATCH,
        "block_length": 16,
        "lanes": 4,
        "sequences_per_block": 8,
        "validation_vectors": 512,
        "statistics_tokens": 512,
        "prefetch": False,
        **options,
    }
    return HiddenStateDataModule(
        embedded(str(model)),
        LocalText(str(text), max_documents=8, validation_fraction=0.3),
        StreamOptions(**chosen),
        max_vectors=steps * chosen["batch_size"],
        seed=3,
        data_dir=data_dir,
    )


def small_learner(
    data: DataModule,
    prox: Prox | None = None,
    inference: Inference | None = None,
    update: UpdateRule | None = None,
    loss: Loss | None = None,
    **dictionary: Any,
) -> DictionaryLearner:
    """A learner of 64 atoms; k = 8, two unrolled layers and Adam unless told otherwise."""
    shape: dict[str, Any] = {"n_atoms": 64, "initialization": "gaussian", "seed": 3, **dictionary}
    return DictionaryLearner(
        Dictionary(width=data.hidden_size, **shape),
        TopK(8) if prox is None else prox,
        Unrolled() if inference is None else inference,
        Adam(warmup_vectors=0) if update is None else update,
        loss,
        max_vectors=data.max_vectors,
        config={"seed": 3},
    )


def small_trainer(
    folder: Path, callbacks: Sequence[pl.Callback] = (), **arguments: Any
) -> pl.Trainer:
    """A quiet trainer of one epoch on the CPU."""
    quiet()
    chosen: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "limit_val_batches": 0.0,
        **arguments,
    }
    return pl.Trainer(
        default_root_dir=folder,
        callbacks=list(callbacks),
        plugins=[AtomicCheckpointIO()],
        **chosen,
    )


def save(
    folder: Path, learner: DictionaryLearner, data: HiddenStateDataModule, **about: Any
) -> Path:
    """Write the dictionary as the main job does; return its folder."""
    inference: dict[str, Any] = {"_target_": "dictlearn.inference.Unrolled", "n_layers": 2}
    chosen: dict[str, Any] = {
        "prox": {"_target_": "dictlearn.prox.TopK", "k": 8},
        "inference": inference,
        "transformer": data.transformer.describe(),
        "text": {
            "source": data.text.name,
            "block_length": data.options.block_length,
            "special_tokens": data.options.special_tokens,
        },
        "metrics": {"val/fvu": 0.5},
        **about,
    }
    save_dictionary(folder, learner.dictionary, learner.inference, data.normalization, chosen)
    return folder
