"""Files that would do something when they are read carelessly."""

from __future__ import annotations

import io
import os
import pickle
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save


class Hostile:
    """A pickle that makes a file when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


class Command(Hostile):
    """One that does it by a command of the shell."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {shlex.quote(str(self.marker))}",)


def payloads(marker: Path) -> list[bytes]:
    """The same pickle in the clothes of every format: plain, torch's two, numpy's, and in the
    metadata of safetensors.
    """
    hostile, command = Hostile(marker), Command(marker)
    zipped, legacy, array = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save({"state_dict": hostile}, zipped)
    torch.save({"state_dict": hostile}, legacy, _use_new_zipfile_serialization=False)
    np.save(array, np.array([hostile], dtype=object), allow_pickle=True)
    texts = {"format": "pt", "config": pickle.dumps(command, protocol=0).decode("latin1")}
    return [
        pickle.dumps(hostile),
        zipped.getvalue(),
        legacy.getvalue(),
        array.getvalue(),
        pickle.dumps(command),
        save({"x": torch.zeros(2, 2)}, texts),
    ]
