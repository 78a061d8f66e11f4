"""What is to be stored: which token blocks, in which shards, under which description."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from dictlearn.errors import InputError
from dictlearn.hidden_states.cache.shards import Layout
from dictlearn.hidden_states.datamodule import HiddenStateDataModule
from dictlearn.hidden_states.extraction import Extractor, Integers
from dictlearn.hidden_states.options import Recipe
from dictlearn.seeding import generator

SPLITS = ("train", "validation")


class Part(NamedTuple):
    """One shard to be made.

    Attributes:
        name: of its file.
        split: `train` or `validation`.
        number: among all shards of the cache.
        blocks: numbers of its token blocks.
        layout: its sizes.
    """

    name: str
    split: str
    number: int
    blocks: Integers
    layout: Layout

    @property
    def vectors(self) -> int:
        """How many vectors it will hold."""
        return self.layout.tokens * self.layout.layers


class Plan(NamedTuple):
    """All that is to be stored.

    Attributes:
        described: every option that decides the content, by the name a user knows it by.
        extractors: what makes the hidden states of every split.
        parts: the shards.
        held_out: tokens of every held-out block, in order.
    """

    described: dict[str, Any]
    extractors: dict[str, Extractor]
    parts: tuple[Part, ...]
    held_out: Integers

    def vectors(self, split: str) -> int:
        """Return how many vectors of a split are to be stored."""
        return sum(part.vectors for part in self.parts if part.split == split)


def made_plan(data: HiddenStateDataModule, recipe: Recipe, device: torch.device) -> Plan:
    """Open text and transformer, and lay out the shards.

    Raises:
        InputError: the limit leaves no token block.
    """
    extractors = dict(zip(SPLITS, data.open_text(device), strict=True))
    about = data.transformer.describe()
    dtype = str(about["dtype"]) if recipe.dtype == "auto" else recipe.dtype
    limits = {"train": recipe.max_vectors, "validation": recipe.max_validation_vectors}
    parts: list[Part] = []
    held_out = np.empty(0, dtype=np.int64)
    for split, extractor in extractors.items():
        blocks = _chosen(extractor, limits[split], recipe.seed, split)
        held_out = extractor.n_tokens(blocks)  # what remains is that of the last split
        parts += _cut(split, extractor, blocks, dtype, recipe.shard_vectors, len(parts))
    sequences = extractors["train"].frame.sequences
    described = _described(data, recipe, about, dtype, sequences)
    return Plan(described, extractors, tuple(parts), held_out)


def _chosen(extractor: Extractor, at_most: int | None, seed: int, split: str) -> Integers:
    """Return the numbers of all token blocks, or of some drawn from all of them, in order."""
    n_blocks = len(extractor.blocks.start)
    everything = np.arange(n_blocks)
    rows = extractor.n_tokens(everything) * len(extractor.layers)
    if at_most is None or rows.sum() <= at_most:
        return everything
    order = torch.randperm(n_blocks, generator=generator(seed, "cache", split)).numpy()
    n = int(np.searchsorted(np.cumsum(rows[order]), at_most, side="right"))
    if not n and split == "train":
        raise InputError(f"max_vectors={at_most} is less than one token block: raise it.")
    return np.sort(order[:n])


def _cut(
    split: str, extractor: Extractor, blocks: Integers, dtype: str, shard_vectors: int, first: int
) -> list[Part]:
    """Cut token blocks into shards of whole forward passes."""
    if not len(blocks):
        return []
    n_layers, sequences = len(extractor.layers), extractor.frame.sequences
    tokens = extractor.n_tokens(blocks)
    wanted = max(1, shard_vectors // n_layers)
    group = (np.cumsum(tokens) - tokens) // wanted
    starts = np.unique(np.unique(group, return_index=True)[1] // sequences * sequences)
    parts = []
    for i, (start, end) in enumerate(zip(starts, [*starts[1:], len(blocks)], strict=True)):
        n_tokens, width = int(tokens[start:end].sum()), extractor.transformer.hidden_size
        layout = Layout(n_tokens, n_layers, width, getattr(torch, dtype))
        name = f"{split}-{i:05}.safetensors"
        parts.append(Part(name, split, first + i, blocks[start:end], layout))
    return parts


def _described(
    data: HiddenStateDataModule,
    recipe: Recipe,
    about: dict[str, object],
    dtype: str,
    sequences: int,
) -> dict[str, Any]:
    options, store = data.options, data.store
    names = ("block_length", "special_tokens", "keep_special", "cross_documents", "max_norm")
    return {
        "transformer.name": about["name"],
        "transformer.sha256": about["sha256"],
        "transformer.dtype": about["dtype"],
        "text": data.text.name,
        "text.tokens": store.path.name,
        "text.validation_fraction": data.text.validation_fraction,
        "hidden_states.layers": list(data.layers),
        **{f"hidden_states.{name}": getattr(options, name) for name in names},
        # the shape of a forward pass decides the last bits
        "hidden_states.sequences_per_block": sequences,
        "dtype": dtype,
        "max_vectors": recipe.max_vectors,
        "max_validation_vectors": recipe.max_validation_vectors,
        "shard_vectors": recipe.shard_vectors,
        "seed": recipe.seed,
    }
