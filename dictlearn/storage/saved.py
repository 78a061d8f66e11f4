"""How a trained dictionary is written to disk and read back."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dictlearn.dictionary import Dictionary
from dictlearn.errors import InputError
from dictlearn.hidden_states import Normalization
from dictlearn.inference import Inference
from dictlearn.prox import Prox, Weighted
from dictlearn.storage import artifact
from dictlearn.storage.choosing import named, object_of
from dictlearn.storage.trained import TrainedDictionary


def save_dictionary(
    folder: Path,
    dictionary: Dictionary,
    inference: Inference,
    normalization: Normalization,
    about: dict[str, Any],
    *,
    prox: Prox | None = None,
    write: bool = True,
) -> None:
    """Write the artefact: tensors as safetensors, everything else as JSON.

    Args:
        folder: usually ``RUN/dictionary``.
        dictionary: the atoms.
        inference: its parameters go along.
        normalization: folded in, so that users pass raw hidden states.
        about: ``prox`` and ``inference`` as they are in the config, ``transformer`` as it
            describes itself, ``text`` (block length, special tokens), ``metrics``.
        prox: the sparsity itself, whose weights, if any, go along. Without it those are read that
            `about` names a file of, which may be others by now.
        write: whether this process writes. Where several hold the dictionary together, all of
            them must call this and the first one write.

    Raises:
        InputError: that file is not there any more.
    """
    described, beside = _apart(named(about["prox"]), prox)
    parts: dict[str, nn.Module] = {"dictionary": dictionary, "inference": inference}
    tensors = {
        f"{part}.{name}": tensor.detach()
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
    }
    tensors |= beside
    tensors["normalization.mean"] = normalization.mean
    tensors["normalization.scale"] = normalization.scale
    config = {
        "library": _library(),
        "dictionary": {
            "n_atoms": dictionary.n_atoms,
            "width": dictionary.width,
            "bias": dictionary.bias is not None,
        },
        "layers": normalization.layers.tolist(),
        "normalization": normalization.kind,
        **about,
        "prox": described,
        "inference": named(about["inference"]),
    }
    if write:
        artifact.write(folder, tensors, config)


def load(path: str | Path) -> TrainedDictionary:
    """Load a trained dictionary from a run directory or its ``dictionary/`` folder.

    Nothing from the files is executed: tensors are safetensors, the config is JSON, and classes
    are looked up by name in this library.

    Raises:
        InputError: there is none, it is damaged, or it is from a newer version.
    """
    folder = artifact.find(path)
    tensors, about = artifact.read(folder)
    try:
        return _assembled(tensors, about)
    except InputError:
        raise
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        found = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(
            f"{folder / artifact.CONFIG} does not describe the tensors beside it ({found}); "
            "restore both from where they were made."
        ) from error


def _assembled(tensors: dict[str, Tensor], about: dict[str, Any]) -> TrainedDictionary:
    shape = about["dictionary"]
    if tuple(tensors["dictionary.atoms"].shape) != (shape["n_atoms"], shape["width"]):
        raise ValueError("atoms of another shape")  # before anything of that shape is made
    dictionary = Dictionary(shape["n_atoms"], shape["width"], shape["bias"], "gaussian")
    prox: Prox = object_of({**about["prox"], **_below(tensors, "prox")})
    inference: Inference = object_of(about["inference"])
    inference.build(dictionary, prox)
    for name, module in (("dictionary", dictionary), ("inference", inference)):
        module.load_state_dict(_below(tensors, name))
        module.requires_grad_(False).eval()
    normalization = Normalization(
        about["normalization"],
        about["layers"],
        tensors["normalization.mean"],
        tensors["normalization.scale"],
    )
    return TrainedDictionary(dictionary, prox, inference, normalization, about)


def _apart(
    described: dict[str, Any], prox: Prox | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the description of a sparsity without its weights, and these as a tensor."""
    sparsity = object_of(described) if prox is None else prox
    if not isinstance(sparsity, Weighted):
        return described, {}
    plain = {key: value for key, value in described.items() if key != "weights"}
    return plain, {"prox.weights": sparsity.weights}


def _library() -> str:
    """Return name and version; a checkout that was never installed has no version."""
    name = "transformer-factors"
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return name


def _below(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    prefix = f"{name}."
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
