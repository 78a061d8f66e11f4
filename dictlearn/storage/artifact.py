"""A trained dictionary on disk: ``dictionary.safetensors`` and ``config.json``, only data."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from dictlearn.errors import InputError
from dictlearn.storage.atomic import atomic_file, write_text

FORMAT = 1
TENSORS = "dictionary.safetensors"
CONFIG = "config.json"
LARGEST_CONFIG = 10_000_000


def write(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Write tensors and config to `folder`; the config carries the tensors' digest."""
    data = save_tensors({name: tensor.contiguous().cpu() for name, tensor in tensors.items()})
    config = {"format": FORMAT, **config, "sha256": hashlib.sha256(data).hexdigest()}
    with atomic_file(folder / TENSORS) as file:
        file.write(data)
    write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def find(path: str | Path) -> Path:
    """Return the artefact's folder for a run directory or for the folder itself.

    Raises:
        InputError: there is none at `path`.
    """
    path = Path(path)
    for folder in (path, path / "dictionary"):
        if (folder / CONFIG).is_file() and (folder / TENSORS).is_file():
            return folder
    raise InputError(
        f"There is no trained dictionary at {path}: give a run directory that finished "
        f"(it holds dictionary/{CONFIG} and dictionary/{TENSORS})."
    )


def read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read an artefact and verify its digest.

    Raises:
        InputError: it is damaged, or was written by a newer version.
    """
    try:
        if (folder / CONFIG).stat().st_size > LARGEST_CONFIG:
            raise ValueError(f"it is larger than {LARGEST_CONFIG / 1e6:g} MB")
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not a mapping")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{folder / CONFIG} is damaged: {error}.") from None
    if config.get("format") != FORMAT:
        raise InputError(
            f"{folder / CONFIG} has format {config.get('format')}, this version reads {FORMAT}: "
            "update transformer-factors."
        )
    data = (folder / TENSORS).read_bytes()
    if hashlib.sha256(data).hexdigest() != config.get("sha256"):
        raise InputError(
            f"{folder / TENSORS} is damaged: its SHA-256 is not the one in {CONFIG}; "
            "restore both from where they were made."
        )
    try:
        return load_tensors(data), config
    except SafetensorError as error:
        raise InputError(f"{folder / TENSORS} is damaged: {error}.") from None
