"""A trained dictionary on disk: ``dictionary.safetensors`` and ``config.json``, only data.

Two files cannot be replaced at one moment. So the tensors carry their config along: whoever finds
them beside an older ``config.json`` (another process writes now, or was killed) reads theirs.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
import xxhash
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
OWN = "dictlearn"  # key of the metadata in the file of the tensors


def write(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Write tensors and config to `folder`; the config carries the tensors' digest."""
    tensors = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    config = {"format": FORMAT, **config}
    about = {"config": config, "xxh3_64": _digest(config, tensors)}
    data = save_tensors(tensors, {OWN: json.dumps(about)})
    config["sha256"] = hashlib.sha256(data).hexdigest()
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
    several = sorted(str(folder) for folder in path.glob("variants/*"))
    if several:
        raise InputError(f"{path} holds several dictionaries: give one of {', '.join(several)}.")
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
    fits = hashlib.sha256(data).hexdigest() == config.get("sha256")
    try:
        tensors = load_tensors(data)
    except SafetensorError as error:
        raise InputError(f"{folder / TENSORS} is damaged: {error}.") from None
    if fits:
        return tensors, config
    own = _own_config(data, tensors)
    if own is None:
        raise InputError(
            f"{folder / TENSORS} is damaged: its SHA-256 is not the one in {CONFIG}; "
            "restore both from where they were made."
        )
    return tensors, own


def _own_config(data: bytes, tensors: dict[str, Tensor]) -> dict[str, Any] | None:
    """Return the config that a file of tensors carries, if both are as they were written."""
    try:
        length = int.from_bytes(data[:8], "little")
        about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][OWN])
        config: dict[str, Any] = about["config"]
        return config if about["xxh3_64"] == _digest(config, tensors) else None
    except (KeyError, TypeError, ValueError):
        return None


def _digest(config: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """Return a digest of config and tensors; bits that flip by themselves change it."""
    digest = xxhash.xxh3_64(json.dumps(config).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
