"""The shards of one split as one long row of tokens, of which any vectors can be read.

Row `i` is token `i // L` in layer `layers[i % L]`: rows of neighbouring numbers are neighbours on
the disk. Legend: n rows, t tokens, L chosen layers, S stored layers, d width.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dictlearn.errors import InputError
from dictlearn.hidden_states.batch import HiddenStates, TokenStates
from dictlearn.hidden_states.cache.manifest import Manifest, Shard, check
from dictlearn.hidden_states.cache.shards import COLUMNS, Layout, mapped
from dictlearn.hidden_states.options import CachedOptions
from dictlearn.hidden_states.permutation import Integers

log = logging.getLogger(__name__)


class StoredSplit:
    """The tokens of a split and their hidden states.

    Args:
        folder: of the cache.
        manifest: its manifest.
        shards: those of the split.
        layers: the layers that are wanted.
        options: whether and when digests are checked, and what a damaged shard is.
        weights: weight of every token id, float32 `[V]`.

    Attributes:
        sound: which shards are used, bool.
        n_tokens: number of tokens in them.

    Raises:
        InputError: a shard is damaged, and is not to be skipped.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        shards: tuple[Shard, ...],
        layers: tuple[int, ...],
        options: CachedOptions,
        weights: Tensor,
    ) -> None:
        self._folder, self._manifest, self._options = folder, manifest, options
        self._weights = weights
        self.layers = torch.tensor(layers, dtype=torch.int64)
        # of every wanted layer: which of the stored ones it is
        self._columns = np.array([manifest.layers.index(layer) for layer in layers], dtype=np.int64)
        self.sound = np.array([self._usable(shard) for shard in shards], dtype=bool)
        self._shards = [shard for shard, good in zip(shards, self.sound, strict=True) if good]
        tokens = np.array([shard.tokens for shard in self._shards], dtype=np.int64)
        self._starts = np.concatenate([[0], np.cumsum(tokens)])
        self.n_tokens = int(self._starts[-1])
        self._tensors: list[dict[str, Tensor] | None] = [None] * len(self._shards)

    def _usable(self, shard: Shard) -> bool:
        skips = self._options.on_damage == "skip"
        try:
            check(self._folder, shard, content=skips and self._options.verify)
        except InputError as error:
            if not skips:
                raise
            log.warning("Left out: %s", error)
            return False
        return True

    def gather(self, rows: Integers) -> HiddenStates:
        """Return the rows with these numbers, `rows: [n]`, in their order.

        Raises:
            InputError: a shard is damaged, or a row is not finite.
        """
        order = np.argsort(rows)  # as they lie on the disk
        token, layer = np.divmod(rows[order], len(self._columns))
        vectors = torch.empty(len(rows), self._manifest.hidden_size)
        of_tokens = torch.empty(len(COLUMNS), len(rows), dtype=torch.int64)
        bounds = np.searchsorted(token, self._starts)
        for shard in np.flatnonzero(bounds[1:] > bounds[:-1]):
            here = slice(bounds[shard], bounds[shard + 1])
            tensors = self._open(int(shard))
            place = torch.from_numpy(order[here])
            at = token[here] - self._starts[shard]
            flat = torch.from_numpy(at * len(self._manifest.layers) + self._columns[layer[here]])
            found = tensors["vectors"].flatten(0, 1).index_select(0, flat)
            vectors.index_copy_(0, place, found.float())
            for column, name in enumerate(COLUMNS):
                values = tensors[name].index_select(0, torch.from_numpy(at))
                of_tokens[column].index_copy_(0, place, values.long())
        layers = torch.empty(len(rows), dtype=torch.int64)
        layers.index_copy_(0, torch.from_numpy(order), self.layers[torch.from_numpy(layer)])
        token_id, document, position, sound = of_tokens
        weight = self._weights[token_id] * sound
        made = HiddenStates(vectors, layers, token_id, document, position, weight)
        self._check_finite(made)
        return made

    def span(self, first: int, last: int) -> TokenStates:
        """Return tokens `first` to `last` (exclusive) in the wanted layers."""
        vectors, columns = [], []
        begin = int(np.searchsorted(self._starts, first, side="right")) - 1
        for shard in range(begin, len(self._shards)):
            start, end = int(self._starts[shard]), int(self._starts[shard + 1])
            if start >= last:
                break
            tensors = self._open(shard)
            here = slice(max(first - start, 0), min(last, end) - start)
            found = tensors["vectors"][here].index_select(1, torch.from_numpy(self._columns))
            vectors.append(found.transpose(0, 1))
            columns.append(torch.stack([tensors[name][here].long() for name in COLUMNS]))
        token, document, position, sound = torch.cat(columns, dim=1)
        states = TokenStates(
            torch.cat(vectors, dim=1).contiguous(),
            self.layers,
            token,
            document,
            position,
            self._weights[token] * sound,
        )
        self._check_finite(states.rows())
        return states

    def _open(self, number: int) -> dict[str, Tensor]:
        """Return the tensors of a shard; its digest is checked the first time."""
        tensors = self._tensors[number]
        if tensors is None:
            shard = self._shards[number]
            skips = self._options.on_damage == "skip"  # then it was checked already
            check(self._folder, shard, content=self._options.verify and not skips)
            tensors = mapped(self._folder / shard.file)
            dtype: torch.dtype = getattr(torch, self._manifest.dtype)
            sizes = (shard.tokens, len(self._manifest.layers), self._manifest.hidden_size, dtype)
            found = {name: (value.dtype, tuple(value.shape)) for name, value in tensors.items()}
            if found != Layout(*sizes).tensors():
                raise InputError(f"{self._folder / shard.file} is no shard of this cache.")
            self._tensors[number] = tensors
        return tensors

    def _check_finite(self, states: HiddenStates) -> None:
        finite = states.vectors.sum(-1, dtype=torch.float32).isfinite()  # a row's sum shows it
        if not bool(finite.all()):
            at = int((~finite).nonzero()[0, 0])
            raise InputError(
                f"hidden_states[{int(states.layer[at])}] in the cache {self._folder} is not finite"
                f" in document {int(states.document[at])} at token {int(states.position[at])}: "
                "make the cache anew, or leave this layer out."
            )
