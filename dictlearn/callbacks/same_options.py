"""Whether a run that goes on by itself is what it was when it began."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dictlearn.errors import InputError

LEARNED = ("variants", "branch_at", "dictionary", "prox", "inference", "loss", "update")
"""What decides what is learned, beside the data, whose order is compared by itself."""

VECTORS = {
    "hidden_states": (
        *("normalization", "statistics_tokens", "max_norm"),
        *("token_weight_exponent", "normalize_weights"),
    ),
    "transformer": ("path", "revision", "dtype"),
}
"""What decides what the vectors are and how much they weigh, whatever their order."""


def refuse_other_options(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on, where nobody said so, with a dictionary that began in another way.

    Args:
        before: the resolved config that the checkpoint was made with.
        now: that of this launch; with ``resume=true`` everything goes.

    Raises:
        InputError: they differ in what decides what is learned.
    """
    if now.get("resume") != "auto":
        return
    had, has = (dict(_flat(_deciding(config))) for config in (before, now))
    other = [key for key in {**had, **has} if had.get(key) != has.get(key)]
    if other:
        said = ", ".join(f"{key}={had.get(key)} and now has {has.get(key)}" for key in other[:3])
        raise InputError(
            f"The run in this directory began with {said}: give the options of before, resume=true "
            "to go on with the new ones, or another name= or hydra.run.dir=."
        )


def _deciding(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that may not change by themselves."""
    kept = {key: config.get(key) for key in LEARNED}
    for group, names in VECTORS.items():
        node = config.get(group) or {}
        kept[group] = {name: node.get(name) for name in names}
    if "path" in (config.get("hidden_states") or {}):  # of stored ones: no transformer makes them
        del kept["transformer"]
    return kept


def _flat(node: object, name: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _flat(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, node
