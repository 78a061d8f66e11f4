"""A trained dictionary, ready to use: from raw hidden states or raw text to factors and back."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.dictionary import Dictionary
from dictlearn.errors import InputError
from dictlearn.hidden_states import HiddenStates, Normalization
from dictlearn.inference import Inference, Solution
from dictlearn.prox import Prox
from dictlearn.storage.choosing import choose
from dictlearn.transformer import FrozenTransformer

ROWS_AT_ONCE = 4096

Layer = int | Sequence[int] | Tensor | None


class EncodedText(NamedTuple):
    """The factors of a text of `t` tokens at `L` hidden states.

    Attributes:
        tokens: the text of every token, `t` of them.
        layers: indices of `hidden_states`, `L` of them.
        hidden_states: raw vectors, `[L, t, d]`.
        codes: `[L, t, m]`.
    """

    tokens: list[str]
    layers: tuple[int, ...]
    hidden_states: Tensor
    codes: Tensor


class TrainedDictionary:
    """A dictionary with the inference, normalisation and transformer that it was trained with.

    Attributes:
        dictionary: atoms `[m, d]`, unit rows, in the normalised space.
        prox: what makes the codes sparse.
        inference: `x -> codes`.
        normalization: raw hidden states -> the space of the atoms.
        about: the content of ``config.json``.
    """

    def __init__(
        self,
        dictionary: Dictionary,
        prox: Prox,
        inference: Inference,
        normalization: Normalization,
        about: dict[str, Any],
    ) -> None:
        self.dictionary, self.prox, self.inference = dictionary, prox, inference
        self.normalization, self.about = normalization, about
        self._transformer: FrozenTransformer | None = None

    @property
    def atoms(self) -> Tensor:
        """The atoms, `[m, d]`."""
        return self.dictionary.atoms.detach()

    def to(self, device: str | torch.device) -> TrainedDictionary:
        """Move everything to a device, and return the dictionary; inputs follow by themselves."""
        for module in (self.dictionary, self.inference, self.normalization):
            module.to(device)
        self._transformer = None  # loaded there on its next use
        return self

    @torch.no_grad()
    def with_inference(
        self,
        name: str,
        *,
        sample: Tensor | HiddenStates | None = None,
        layer: Layer = None,
        **options: Any,
    ) -> TrainedDictionary:
        """Return the same dictionary with another sparse inference; see `choosing.choose`.

        Args:
            name: of a file in ``conf/inference`` (`omp`, `working_set`, ...), or `encoder`: the
                learned encoder alone.
            sample: raw hidden states `[..., d]` that are to have `k` codes on average, some
                hundred of them; every vector then has as many as are worth it. Left out: `k` each,
                or what the price of training gives.
            layer: of the sample, as in `encode`.
            options: of the inference (`tolerance`, ...) and of the sparsity (`k`, `lambda_`).

        Raises:
            InputError: there is no such inference or option, or the sparsity does not fit it.
        """
        rows = None if sample is None else self._rows(sample, layer)
        inference, prox = choose(name, self.dictionary, self.prox, self.inference, options, rows)
        inference.to(self.atoms.device)
        other = TrainedDictionary(self.dictionary, prox, inference, self.normalization, self.about)
        other._transformer = self._transformer
        return other

    @property
    def layers(self) -> tuple[int, ...]:
        """Indices of `hidden_states` that the dictionary was trained on."""
        return tuple(self.normalization.layers.tolist())

    @property
    def source(self) -> str:
        """Name of the transformer that the hidden states come from, or of their file."""
        known = self.about["transformer"]
        return str(self.about["text"]["source"] if known is None else known["name"])

    @property
    def transformer(self) -> FrozenTransformer:
        """The frozen transformer that the hidden states come from, loaded on first use."""
        if self._transformer is None:
            known = self.about["transformer"]
            if known is None:
                raise InputError(
                    f"This dictionary was trained on the vectors of {self.source}, and which "
                    "transformer they come from is not known: give hidden states to encode()."
                )
            found = FrozenTransformer(known["path"], known["dtype"], known["revision"])
            found.load(self.atoms.device)
            if found.describe()["sha256"] != known["sha256"]:
                raise InputError(
                    f"The model at {known['path']} is not the one this dictionary was trained on: "
                    "its weights have another SHA-256."
                )
            self._transformer = found
        return self._transformer

    @torch.no_grad()
    def encode(self, hidden_states: Tensor | HiddenStates, layer: Layer = None) -> Tensor:
        """Return the codes of raw hidden states, `[..., m]` for `[..., d]`.

        Args:
            hidden_states: `[..., d]` of one layer, or `[L, ..., d]`, one entry for every tapped
                layer in their order (as the tapped part of transformers' `hidden_states`, stacked),
                or a batch of the stream, which knows its layers.
            layer: the index of `hidden_states` that the vectors come from, or one index for every
                entry of the first axis. Left out: the only tapped layer; or all of them, if there
                are three axes or more and the first has their number; otherwise the mean
                statistics of all layers, with a warning.

        Raises:
            InputError: wrong width, or a layer that the dictionary was not trained on.
        """
        vectors, layer = self._checked(hidden_states, layer)
        return self._in_chunks(self._encode_rows, vectors, self._layers_of(vectors, layer))

    @torch.no_grad()
    def decode(self, codes: Tensor, layer: Layer = None) -> Tensor:
        """Return raw hidden states `[..., d]` for codes `[..., m]`; `layer` as in `encode`."""
        if codes.shape[-1] != self.dictionary.n_atoms:
            raise InputError(
                f"The codes have {codes.shape[-1]} entries but the dictionary has "
                f"{self.dictionary.n_atoms} atoms."
            )
        codes = codes.to(self.atoms.device)
        return self._in_chunks(self._decode_rows, codes, self._layers_of(codes, layer))

    @torch.no_grad()
    def infer(self, hidden_states: Tensor | HiddenStates, layer: Layer = None) -> Solution:
        """Return codes `[n, m]` with their certificates (relative duality gaps `[n]`).

        The rows of `[..., d]` are coded one after the other, as `n` of them, all at once.
        """
        x = self._rows(hidden_states, layer)
        solution: Solution = self.inference(x, self.dictionary.atoms, self.prox, certify=True)
        return solution

    def encode_text(self, text: str) -> EncodedText:
        """Return the factors of every token of a text at every tapped layer.

        The text is cut into sequences as in training; special tokens are not shown.

        Raises:
            InputError: the text holds no token.
        """
        hidden, ids = self._read(text)
        tokenizer = self.transformer.tokenizer
        tokens = [tokenizer.decode([token]) for token in ids]
        return EncodedText(tokens, self.layers, hidden, self.encode(hidden, self.layers))

    def _read(self, text: str) -> tuple[Tensor, list[int]]:
        model, made = self.transformer, self.about["text"]
        # As the training text was: whole, and with "[SEP]" in a text no separator.
        split = model.tokenizer(
            text.encode("utf-8", "replace").decode(),
            add_special_tokens=False,
            truncation=False,
            split_special_tokens=True,
            verbose=False,
        )
        ids = split["input_ids"]
        if not ids:
            raise InputError("text= holds no token: give a sentence.")
        wrap = made["special_tokens"] == "model"
        before, after = model.special_affixes if wrap else ((), ())
        parts = []
        for first in range(0, len(ids), made["block_length"]):
            part = ids[first : first + made["block_length"]]
            sequence = torch.tensor([[*before, *part, *after]])
            hidden = model.hidden_states(sequence, torch.ones_like(sequence), self.layers)
            parts.append(hidden[:, 0, len(before) : len(before) + len(part)].float())
        return torch.cat(parts, dim=1), ids

    def _rows(self, hidden_states: Tensor | HiddenStates, layer: Layer) -> Tensor:
        """Return raw vectors `[..., d]` as rows `[n, d]` in the space of the atoms."""
        vectors, layer = self._checked(hidden_states, layer)
        layers = self._layers_of(vectors, layer, depth=5)
        rows = vectors.reshape(-1, self.dictionary.width).float()
        return self.dictionary.centre(self._normalize(rows, layers))

    def _checked(self, hidden_states: Tensor | HiddenStates, layer: Layer) -> tuple[Tensor, Layer]:
        if isinstance(hidden_states, HiddenStates):
            layer = hidden_states.layer
            hidden_states = hidden_states.vectors
        width = self.dictionary.width
        if hidden_states.shape[-1] != width:
            raise InputError(
                f"The hidden states have width {hidden_states.shape[-1]} but the atoms have width "
                f"{width}: they come from another model."
            )
        return hidden_states.to(self.atoms.device), layer

    def _layers_of(self, values: Tensor, layer: Layer, depth: int = 4) -> Tensor | None:
        """Return the layer of every row of `values` seen as `[rows, ...]`, or None if unknown.

        A warning is the line's that is so many calls away.
        """
        lead = values.shape[:-1]
        if layer is None:
            if len(self.layers) == 1 or self.normalization.kind == "none":
                layer = self.layers[0]
            elif len(lead) > 1 and lead[0] == len(self.layers):
                layer = self.layers
            else:
                warnings.warn(
                    "layer= was not given: the mean statistics of all layers are used. "
                    f"Give layer=, one of {self.layers}.",
                    stacklevel=depth,
                )
                return None
        wanted = torch.as_tensor(layer, dtype=torch.int64, device=values.device).flatten()
        unknown = sorted(set(wanted.tolist()) - set(self.layers))
        if unknown:
            raise InputError(f"layer={unknown} was not trained on; the layers are {self.layers}.")
        first = lead[0] if lead else 1
        if len(wanted) not in (1, first):
            raise InputError(
                f"layer= names {len(wanted)} layers but the first axis has length {first}."
            )
        return wanted.repeat_interleave(math.prod(lead) // max(len(wanted), 1))

    def _normalize(self, vectors: Tensor, layers: Tensor | None) -> Tensor:
        if layers is None:
            return self.normalization.pooled(vectors)
        x: Tensor = self.normalization(vectors, layers)
        return x

    def _encode_rows(self, vectors: Tensor, layers: Tensor | None) -> Tensor:
        x = self.dictionary.centre(self._normalize(vectors, layers))
        solution: Solution = self.inference(x, self.dictionary.atoms, self.prox)
        return solution.codes.dense()

    def _decode_rows(self, codes: Tensor, layers: Tensor | None) -> Tensor:
        x = self.dictionary.uncentre(self.dictionary.decode(Codes.from_dense(codes)))
        if layers is None:
            return self.normalization.invert_pooled(x)
        return self.normalization.invert(x, layers)

    @staticmethod
    def _in_chunks(
        function: Callable[[Tensor, Tensor | None], Tensor], values: Tensor, layers: Tensor | None
    ) -> Tensor:
        """Return `function` of the rows of `values: [..., p]`, a bounded number at a time."""
        rows = values.reshape(-1, values.shape[-1]).float()
        parts = [
            function(
                rows[first : first + ROWS_AT_ONCE],
                None if layers is None else layers[first : first + ROWS_AT_ONCE],
            )
            for first in range(0, max(len(rows), 1), ROWS_AT_ONCE)
        ]
        made = torch.cat(parts)
        return made.view(*values.shape[:-1], made.shape[-1])
