"""Checkpoints that are never half written, and never run code when they are read."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import IO, Any

import torch
import xxhash
from pytorch_lightning.plugins.io import TorchCheckpointIO

from dictlearn.errors import InputError
from dictlearn.storage.atomic import atomic_file


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its target, flushes it and renames it; reads plain values only.

    Lightning stages in ``$TMPDIR`` and moves: on another file system that is a plain copy onto
    the final name, which a crash leaves truncated. And whether it unpickles objects depends on
    its version and on the environment.

    Attributes:
        digest: xxh3_64 of the checkpoint written last, in hexadecimal; None before the first.
    """

    digest: str | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write `checkpoint` to the local file `path`."""
        with atomic_file(Path(path)) as file:
            digesting = _Digesting(file)
            try:
                torch.save(checkpoint, digesting)  # type: ignore[arg-type]
            except RuntimeError as error:  # what torch makes of an error of the file
                raise digesting.failure or error from None
        self.digest = digesting.hash.hexdigest()

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read tensors and plain values from the local file `path`, whatever `weights_only` says.

        Raises:
            InputError: there is no such file, it is damaged, or it holds other objects.
        """
        try:
            checkpoint: dict[str, Any] = torch.load(
                path, map_location=map_location, weights_only=True
            )
        except FileNotFoundError:
            raise InputError(f"There is no checkpoint {path}.") from None
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise InputError(
                f"{path} is not a checkpoint of tensors and plain values, or is damaged: give one "
                "that this library wrote."
            ) from error
        return checkpoint


class _Digesting:
    """A file that is digested while it is written; `torch.save` only ever appends."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.hash = file, xxhash.xxh3_64()
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        self.hash.update(data)
        try:
            return self._file.write(data)
        except OSError as error:
            self.failure = self.failure or error
            raise

    def flush(self) -> None:
        self._file.flush()
