"""Which hidden states are tapped: the words and lists of `hidden_states.layers`."""

from __future__ import annotations

from collections.abc import Sequence

from dictlearn.errors import InputError, choice

_KEY = "hidden_states.layers"


def resolve_layers(layers: str | Sequence[int], n_layers: int) -> tuple[int, ...]:
    """Return indices of `hidden_states`: 0 = the embedding output, `n_layers` = the last.

    Args:
        layers: ``all``, ``every_second`` (0, 2, 4, ... without the last hidden state: the layers
            0, 2, .., 10 of 12 that Yun et al. 2021 learn from) or a list of indices, kept in order.
        n_layers: number of layers of the transformer.

    Raises:
        InputError: an unknown word, an empty list, or an index that is out of range or twice there.
    """
    if isinstance(layers, str):
        step = {"all": range(n_layers + 1), "every_second": range(0, n_layers, 2)}
        return tuple(step[choice(_KEY, layers, step)])
    if not isinstance(layers, Sequence) or not layers:
        raise InputError(
            f"{_KEY}={layers} must be all, every_second or a list of indices from 0 (the embedding"
            f" output) to {n_layers} (the last layer), such as [0,{n_layers}]."
        )
    chosen: list[int] = [*layers]
    for index in chosen:
        if type(index) is not int or not 0 <= index <= n_layers:
            raise InputError(
                f"{_KEY} holds {index!r}: this transformer has the indices 0 (the embedding output)"
                f" to {n_layers} (the last layer)."
            )
        if chosen.count(index) > 1:
            raise InputError(
                f"{_KEY} holds {index} twice: give every index from 0 to {n_layers} at most once."
            )
    return tuple(chosen)
