"""The batch: hidden states with their origin.

Legend: n rows (vectors), L tapped layers, t tokens, d width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class HiddenStates(NamedTuple):
    """Vectors of all tapped layers, mixed, and where each of them comes from.

    Attributes:
        vectors: hidden states, float32 `[n, d]`, not normalised.
        layer: index of `hidden_states` (0 = the embedding output), int64 `[n]`.
        token: token id, int64 `[n]`.
        document: index of the document in the token store, int64 `[n]`.
        position: index of the token within its document, int64 `[n]`; -1 for a special token.
            Of vectors without a text: the number of the vector.
        weight: weight of the row by its token's frequency, float32 `[n]`.
    """

    vectors: Tensor
    layer: Tensor
    token: Tensor
    document: Tensor
    position: Tensor
    weight: Tensor

    @classmethod
    def concatenate(cls, parts: Sequence[HiddenStates]) -> HiddenStates:
        """Return the rows of all parts, one part after the other."""
        if len(parts) == 1:
            return parts[0]
        return cls(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


class TokenStates(NamedTuple):
    """Hidden states of some tokens as the transformer gives them: layers by tokens.

    Row `i` of the canonical (layer-major) order is token `i % t` in layer `layers[i // t]`.

    Attributes:
        vectors: `[L, t, d]` in the transformer's compute dtype.
        layers: indices of `hidden_states`, int64 `[L]`.
        token: int64 `[t]`, like `document`, `position` and `weight` as in `HiddenStates`.
        document: int64 `[t]`.
        position: int64 `[t]`.
        weight: float32 `[t]`.
    """

    vectors: Tensor
    layers: Tensor
    token: Tensor
    document: Tensor
    position: Tensor
    weight: Tensor

    @classmethod
    def concatenate(cls, parts: Sequence[TokenStates]) -> TokenStates:
        """Return the tokens of all parts, which have the same layers, one after the other."""
        if len(parts) == 1:
            return parts[0]
        vectors = torch.cat([part.vectors for part in parts], dim=1)
        of_tokens = (torch.cat(columns) for columns in zip(*(p[2:] for p in parts), strict=True))
        return cls(vectors, parts[0].layers, *of_tokens)

    def select(self, rows: Tensor) -> HiddenStates:
        """Return the rows with these canonical indices, `rows: [n]` int64, as float32."""
        t = len(self.token)
        at = rows % t
        return HiddenStates(
            self.vectors.flatten(0, 1)[rows].float(),
            self.layers[torch.div(rows, t, rounding_mode="floor")],
            self.token[at],
            self.document[at],
            self.position[at],
            self.weight[at],
        )

    def slice_tokens(self, first: int, last: int) -> TokenStates:
        """Return tokens `first` to `last` (exclusive) in all layers, without a copy."""
        of_tokens = (column[first:last] for column in self[2:])
        return TokenStates(self.vectors[:, first:last], self.layers, *of_tokens)

    def rows(self) -> HiddenStates:
        """Return all rows in canonical order, layer by layer."""
        n_layers, t, _ = self.vectors.shape
        of_tokens = (column.repeat(n_layers) for column in self[2:])
        layer = self.layers.repeat_interleave(t)
        return HiddenStates(self.vectors.flatten(0, 1).float(), layer, *of_tokens)
