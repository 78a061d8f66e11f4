"""Which tokens can be learned from: those whose hidden states are finite, and of usual length.

Attention sinks (often the first token of a sequence) have hidden states hundreds of times as long
as all others: a single one holds more energy than the rest of its batch.

Legend: L tapped layers, t tokens, d width, n rows.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dictlearn.errors import InputError

log = logging.getLogger(__name__)

Integers = NDArray[np.int64]


def lengths(rows: Tensor) -> Tensor:
    """Return the Euclidean norms of `rows: [..., d]`, float32 `[...]`, summed up in 32 bits.

    Those of bfloat16 are rounded to it: enough to know an outlier by, in a fifth of the time.
    """
    short = rows.dtype == torch.bfloat16
    dtype = None if short else torch.float32
    norms: Tensor = torch.linalg.vector_norm(rows, dim=-1, dtype=dtype).float()
    return norms


def longest(norms: Tensor, ratio: float) -> Tensor:
    """Return how long a hidden state may be: so many times the median of its layer.

    Args:
        norms: of some tokens, `[L, t]`.
        ratio: largest length by the median.

    Returns:
        The largest lengths, `[L]`; infinite where most are zero.
    """
    median = norms.median(dim=1).values
    return torch.where(median > 0, ratio * median, torch.inf)


class Soundness:
    """Leaves out the tokens of which a hidden state is not finite or far too long.

    They keep their places, with the hidden states of a neighbour (zeros where there is none), and
    have no weight: so nothing that follows meets a NaN or an outlier, and no order changes.

    Args:
        transformer: its name.
        layers: tapped indices of `hidden_states`.
        names: of the documents.
        most_non_finite: tokens whose hidden states may be not finite.

    Attributes:
        non_finite: `(document, position)` of the tokens that were not finite.
        longest: largest lengths, `[L]`, see `longest`; None: any length is right.
    """

    def __init__(
        self, transformer: str, layers: tuple[int, ...], names: Sequence[str], most_non_finite: int
    ) -> None:
        self.transformer, self.layers, self.names = transformer, layers, names
        self.most_non_finite = most_non_finite
        self.non_finite: set[tuple[int, int]] = set()
        self.longest: Tensor | None = None
        self._told = False

    def sift(self, rows: Tensor, document: Integers, position: Integers) -> tuple[Tensor, Tensor]:
        """Return `rows: [L, t, d]` with neighbours in the place of what is left out, and which
        tokens are not, bool `[t]`.

        Args:
            rows: hidden states of tokens.
            document: index of the document of every token, `[t]`.
            position: its place in there, `[t]`.

        Raises:
            InputError: too many tokens are not finite.
        """  # noqa: D205
        norms = lengths(rows)
        finite = norms.isfinite()
        usual = finite
        if self.longest is not None:
            usual = finite & (norms <= self.longest.to(norms)[:, None])
        sound = usual.all(0)
        if bool(sound.all()):
            return rows, sound
        if not bool(finite.all()):
            self._refuse_too_many(finite, document, position)
        elif not self._told:
            self._tell(norms, usual, document, position)
        if not bool(sound.any()):
            return torch.zeros_like(rows), sound
        order = torch.arange(len(sound), device=rows.device)
        before = torch.where(sound, order, -1).cummax(0).values
        first = sound.to(torch.int8).argmax()
        return rows.index_select(1, torch.where(before < 0, first, before)), sound

    def _named(self, what: str, layer: int, at: int, document: Integers, position: Integers) -> str:
        """Say in words what is wrong with a layer of a token."""
        place = f"document '{self.names[document[at]]}' at token {position[at]}"
        return f"hidden_states[{self.layers[layer]}] of {self.transformer} is {what} in {place}"

    def _tell(self, norms: Tensor, usual: Tensor, document: Integers, position: Integers) -> None:
        """Name the first token that is too long; there may be one in every sequence."""
        assert self.longest is not None
        self._told = True
        layer, at = _first(~usual)
        what = f"{float(norms[layer, at]):.4g} long"
        log.warning(
            "%s, where %.4g is usual at most: left out, as are all so long"
            " (hidden_states.max_norm).",
            *(self._named(what, layer, at, document, position), float(self.longest[layer])),
        )

    def _refuse_too_many(self, finite: Tensor, document: Integers, position: Integers) -> None:
        named = self._named("not finite", *_first(~finite), document, position)
        wrong = (~finite.all(0)).nonzero().flatten().cpu().numpy()
        new = {(int(document[i]), int(position[i])) for i in wrong} - self.non_finite
        self.non_finite |= new
        if not bool(finite.all(0).any()) or len(self.non_finite) > self.most_non_finite:
            raise InputError(
                f"{named}; with it {len(self.non_finite)} tokens are not"
                f" (hidden_states.max_non_finite={self.most_non_finite}): set"
                " transformer.dtype=float32, or leave this document or layer out."
            )
        if new:
            log.warning("%s: left out, the %d. token so far.", named, len(self.non_finite))


def _first(wrong: Tensor) -> tuple[int, int]:
    """Return layer and token of the first that is true, `[L, t]`."""
    layer, at = wrong.nonzero()[0].tolist()
    return layer, at
