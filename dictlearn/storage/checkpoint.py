"""Checkpoints that are never half written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from dictlearn.storage.atomic import atomic_file


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its target, flushes it and renames it.

    Lightning stages in ``$TMPDIR`` and moves: on another file system that is a plain copy onto
    the final name, which a crash leaves truncated.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write `checkpoint` to the local file `path`."""
        with atomic_file(Path(path)) as file:
            torch.save(checkpoint, file)
