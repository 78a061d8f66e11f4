"""A finished cache, opened to be trained from: neither transformer nor text is needed."""

from __future__ import annotations

import json
import logging
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dictlearn.errors import InputError, one_line
from dictlearn.hidden_states.batch import TokenStates
from dictlearn.hidden_states.cache import manifest as manifests
from dictlearn.hidden_states.cache.shards import mapped
from dictlearn.hidden_states.cache.source import Name, chosen_layers
from dictlearn.hidden_states.cache.split import StoredSplit
from dictlearn.hidden_states.extraction import Frame
from dictlearn.hidden_states.options import CachedOptions
from dictlearn.hidden_states.permutation import Integers
from dictlearn.hidden_states.statistics import Statistics, Sums
from dictlearn.hidden_states.weights import token_weights
from dictlearn.text import TokenStore, open_store

log = logging.getLogger(__name__)

EXPECTED = {manifests.NAME, "plan.json", "notes", "text"}


class StoredBlocks:
    """Held-out token blocks of a cache, found by number like those of an `Extractor`.

    Args:
        split: the held-out tokens.
        lengths: tokens of every block, in order, `[B]`.
        layers: the layers that are wanted.
    """

    frame = Frame(block_length=1)

    def __init__(self, split: StoredSplit, lengths: Integers, layers: tuple[int, ...]) -> None:
        self._split, self._lengths, self.layers = split, lengths, layers
        self._starts = np.cumsum(lengths) - lengths

    def __len__(self) -> int:
        return len(self._lengths)

    def n_tokens(self, numbers: Integers) -> Integers:
        """Return how many tokens each of these blocks has, `[b]`."""
        return self._lengths[numbers]

    def extract(self, numbers: Integers) -> TokenStates:
        """Return the hidden states of the blocks `numbers: [b]`."""
        starts = self._starts[numbers]
        spans = zip(starts, starts + self._lengths[numbers], strict=True)
        return TokenStates.concatenate([self._split.span(int(a), int(b)) for a, b in spans])


class CacheReader:
    """A folder that ``dictlearn cache`` wrote.

    Args:
        options: where it is, and what of it is wanted.

    Attributes:
        manifest: what the cache is of.

    Raises:
        InputError: there is no finished cache, it is damaged, or does not have the layers.
    """

    n_rows: int
    held_out: StoredBlocks

    def __init__(self, options: CachedOptions) -> None:
        self._options, self.path = options, Path(options.path)
        self.manifest = manifests.read(self.path)
        self.layers = chosen_layers(options.layers, self.manifest.layers, self.path)
        self.hidden_size = self.manifest.hidden_size
        self.transformer = Name(str(self.manifest.transformer.get("name")))
        fraction = float(bool(self.manifest.validation))
        self.text = Name(str(self.manifest.text.get("source")), fraction)

    def open(self) -> None:
        """Check every file but the shards, and the sizes of these; warn of files that are extra.

        Raises:
            InputError: a file is damaged.
        """
        made, options = self.manifest, self._options
        for entry in made.files:
            manifests.check(self.path, entry)
        self._warn_of_extra_files()
        text = self.path / "text"
        counts = _whole_numbers(text / "token_counts.npy")
        weights = token_weights(counts, options.token_weight_exponent, options.normalize_weights)
        self._train, validation = (
            StoredSplit(self.path, made, shards, self.layers, options, weights)
            for shards in (made.train, made.validation)
        )
        left_out = [*self._train.sound, *validation.sound].count(False)
        if left_out:
            log.warning("%s: %d damaged shards are left out.", self.path, left_out)
        if not self._train.n_tokens:
            raise InputError(f"{self.path} has no sound shard to train on: make the cache anew.")
        self.n_rows = self._train.n_tokens * len(self.layers)
        self.gather = self._train.gather
        lengths = _whole_numbers(text / "validation_blocks.npy")
        self.held_out = StoredBlocks(validation, self._sound(lengths, validation), self.layers)

    def _sound(self, lengths: Integers, split: StoredSplit) -> Integers:
        """Return the lengths of the held-out blocks whose shards are used."""
        tokens = np.array([shard.tokens for shard in self.manifest.validation], dtype=np.int64)
        if lengths.sum() != tokens.sum():
            raise InputError(f"{self.path} is damaged: its held-out blocks do not fill the shards.")
        shard = np.searchsorted(np.cumsum(tokens), np.cumsum(lengths))
        return np.asarray(lengths[split.sound[shard]])

    def _warn_of_extra_files(self) -> None:
        known = {entry.file for entry in self.manifest.entries()}
        there = [*self.path.iterdir(), *(self.path / "text").iterdir()]
        names = {str(path.relative_to(self.path)) for path in there if path.name[0] != "."}
        if extra := sorted(names - known - EXPECTED):
            log.warning("%s: not part of the cache, and not read: %s", self.path, ", ".join(extra))

    def statistics(self, kind: str) -> Statistics:
        """Return the statistics of all stored training vectors of the layers."""
        path = self.path / "statistics.safetensors"
        if missing := set(Sums._fields) - (tensors := mapped(path)).keys():
            raise _damaged(path, f"it has no {', '.join(sorted(missing))}")
        n, total, norms, squares = (tensors[name] for name in Sums._fields)
        rows = [self.manifest.layers.index(layer) for layer in self.layers]
        return Sums(n, total[rows], norms[rows], squares[rows]).statistics(kind)

    def about(self) -> dict[str, Any]:
        """Return transformer and text as they were when the cache was made."""
        return {"transformer": self.manifest.transformer, "text": self.manifest.text}

    def identity(self) -> dict[str, object]:
        """Return the digest of the manifest, which holds all other digests."""
        return {"cache": manifests.digest_of(self.path / manifests.NAME)}

    @cached_property
    def store(self) -> TokenStore:
        """The tokens of all documents."""
        return open_store(self.path / "text")

    @cached_property
    def pieces(self) -> list[str]:
        """The text of every token id; InputError if the file has none."""
        path = self.path / "text" / "pieces.json"
        try:
            pieces = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:  # no JSON, or a bomb
            raise _damaged(path, error) from None
        if not isinstance(pieces, list) or not all(isinstance(entry, str) for entry in pieces):
            raise _damaged(path, "it is no list of texts")
        return pieces


def _whole_numbers(path: Path) -> Integers:
    """Return an array of whole numbers in a file, `[n]`; nothing in it is run.

    Raises:
        InputError: it is anything else.
    """
    try:
        found = np.lib.format.open_memmap(path, mode="r")  # no memory for what is not there
    except Exception as error:  # numpy reads a header as Python does, and fails in as many ways
        raise _damaged(path, error) from None
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise _damaged(path, f"it has {found.dtype} of shape {found.shape}")
    return np.array(found)


def _damaged(path: Path, why: object) -> InputError:
    reason = one_line(why)[:150].rstrip(".")
    return InputError(f"{path} of the cache is damaged ({reason}): make the cache anew.")
