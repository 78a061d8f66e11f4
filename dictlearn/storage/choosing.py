"""Which sparse inference a trained dictionary is used with, by name and plain values."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from torch import Tensor

from dictlearn import inference as inference_room
from dictlearn import prox as prox_room
from dictlearn.configuration import config_dir
from dictlearn.dictionary import Dictionary
from dictlearn.errors import InputError, nearest
from dictlearn.inference import ExchangePursuit, Inference, price_for_exchange, price_for_l0
from dictlearn.prox import BatchTopK, Prox, Soft, TopK


def choose(
    name: str,
    dictionary: Dictionary,
    prox: Prox,
    trained: Inference,
    options: dict[str, Any],
    sample: Tensor | None = None,
) -> tuple[Inference, Prox]:
    """Return the inference of this name, built for the dictionary, and the sparsity it works with.

    Args:
        name: of a file in ``conf/inference``, or `encoder`: the learned encoder of `trained`.
        dictionary: what it is built for.
        prox: the sparsity of training, kept unless `options` change it.
        trained: the inference of training, which knows its encoder and its price.
        options: those of the inference, by the keys of its file; `k` makes the sparsity topk,
            `lambda_` soft. Without them it is that of training, at its price.
        sample: rows `[n, d]` that are to have `k` codes on average: the price of a code, or of a
            unit of code, is what makes it so.

    Raises:
        InputError: there is no such inference or option, or the sparsity does not fit it.
    """
    options, same = dict(options), "k" not in options
    prox = _sparsity(prox, options)
    if name == "encoder":
        _refuse(options, [])
        return _encoder(trained), prox
    node = _file(name)
    _refuse(options, [key for key in node if key != "_target_"])
    inference: Inference = object_of(named({**node, **options}))
    if sample is not None:
        inference, prox = _shared(inference, prox, sample, dictionary)
    elif isinstance(prox, TopK | BatchTopK) and inference.needs_price:
        prox = _priced(trained, name)
    elif isinstance(inference, ExchangePursuit) and isinstance(prox, BatchTopK):
        if same:
            inference = inference.at_price(_known_price(trained))
        else:
            prox = TopK(prox.k)
    inference.build(dictionary, prox)
    inference.reset(dictionary)
    inference.requires_grad_(False).eval()
    return inference, prox


def _sparsity(prox: Prox, options: dict[str, Any]) -> Prox:
    """Take the options of the sparsity out, and return the sparsity they ask for."""
    fields = [field.name for field in dataclasses.fields(prox)]  # type: ignore[arg-type]
    wanted = {key: options.pop(key) for key in list(options) if key in fields}
    if wanted:
        return dataclasses.replace(prox, **wanted)  # type: ignore[type-var]
    if "k" in options:
        return TopK(options.pop("k"))
    if "lambda_" in options:
        return Soft(options.pop("lambda_"))
    return prox


def _shared(
    inference: Inference, prox: Prox, sample: Tensor, dictionary: Dictionary
) -> tuple[Inference, Prox]:
    """Return inference and sparsity that give the sample `k` codes on average."""
    if not isinstance(prox, TopK | BatchTopK):
        raise InputError("sample= is what k codes on average are found on: give k=, too.")
    atoms = dictionary.atoms.detach()
    if isinstance(inference, ExchangePursuit):
        price = price_for_exchange(sample, atoms, prox.k, engine=inference.engine)
        return inference.at_price(price), BatchTopK(prox.k)
    if inference.needs_price:
        return inference, Soft(price_for_l0(sample, atoms, prox.k))
    raise InputError(
        "sample= is for inferences at a price (exchange, working_set, fista, ...): this one keeps "
        "k codes in every row."
    )


def _known_price(trained: Inference) -> float | None:
    """Return what a code must save in the pursuit that the dictionary was trained for."""
    parts = (part for part in trained.modules() if isinstance(part, ExchangePursuit))
    return next((part.known_price for part in parts), None)


def _encoder(trained: Inference) -> Inference:
    if trained.learned is None:
        raise InputError(
            "This dictionary was learned without an encoder that lasts: choose another inference, "
            "or train with inference.distil=objective."
        )
    return trained.learned


def _priced(trained: Inference, name: str) -> Prox:
    price = getattr(trained, "price", None)
    if price is None:
        raise InputError(
            f"inference={name} needs the price of a unit of code, which this dictionary was "
            "learned without: give lambda_=."
        )
    return Soft(float(price.lambda_))


def _file(name: str) -> dict[str, Any]:
    folder = Path(config_dir()) / "inference"
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in names:
        raise InputError(
            f"There is no inference '{name}'.{nearest(name, names)} There are {', '.join(names)}."
        )
    node = OmegaConf.to_container(OmegaConf.load(folder / f"{name}.yaml"))
    return {str(key): value for key, value in node.items()}  # type: ignore[union-attr]


def _refuse(options: dict[str, Any], known: list[str]) -> None:
    for key in options:
        if key not in known:
            raise InputError(f"There is no option '{key}' for this inference.{nearest(key, known)}")


def named(node: Any) -> Any:
    """Replace ``_target_: dictlearn.room.Name`` by ``type: Name``, at every depth."""
    if not isinstance(node, dict):
        return node
    plain = {key: named(value) for key, value in node.items() if key != "_target_"}
    if "_target_" in node:
        plain["type"] = str(node["_target_"]).rsplit(".", 1)[-1]
    return plain


def object_of(node: Any) -> Any:
    """Build what `named` wrote; only the classes that the rooms export can be named."""
    if not isinstance(node, dict):
        return node
    arguments = {key: object_of(value) for key, value in node.items() if key != "type"}
    for room in (prox_room, inference_room):
        found = getattr(room, node["type"]) if node.get("type") in room.__all__ else None
        if isinstance(found, type):
            return found(**arguments)
    raise InputError(f"config.json names {node.get('type')}, which this version does not have.")
