"""What a cache and a plain file of vectors have in common."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dictlearn.errors import InputError


class Name(NamedTuple):
    """A transformer or a text that is not here, by its name.

    Attributes:
        name: as it was called.
        validation_fraction: share that is held out (0 or some, for a text).
    """

    name: str
    validation_fraction: float = 0.0


def chosen_layers(wanted: str | Sequence[int], there: Sequence[int], path: Path) -> tuple[int, ...]:
    """Return the layers that are wanted of those that are stored.

    Raises:
        InputError: they are not there, or one is there twice.
    """
    if wanted == "all":
        return tuple(there)
    if isinstance(wanted, str) or not wanted:
        raise InputError(f"hidden_states.layers={wanted} must be all or a list of {list(there)}.")
    for layer in wanted:
        if type(layer) is not int or layer not in there or [*wanted].count(layer) > 1:
            raise InputError(
                f"hidden_states.layers holds {layer!r}: {path} has the layers {list(there)}, each"
                " of which can be given once."
            )
    return tuple(wanted)
