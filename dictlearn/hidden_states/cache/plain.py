"""A plain file of vectors `[N, d]`: no tokens, no text, one layer."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dictlearn.errors import InputError
from dictlearn.hidden_states.batch import HiddenStates, TokenStates
from dictlearn.hidden_states.cache.shards import mapped
from dictlearn.hidden_states.cache.source import Name
from dictlearn.hidden_states.extraction import Frame
from dictlearn.hidden_states.options import CachedOptions
from dictlearn.hidden_states.permutation import Integers, Permutation
from dictlearn.hidden_states.soundness import lengths, longest
from dictlearn.hidden_states.statistics import Statistics, Sums

BLOCK = 64
"""Held-out rows that go together."""
STATISTICS_ROWS = 1 << 17
"""Training rows on which means and scales are measured, at most."""
MEDIAN_ROWS = 2048
"""Rows from everywhere in the file whose median length is taken."""
SUFFIXES = (".npy", ".pt", ".pth", ".safetensors")


class PlainRows:
    """A file of vectors; `.npy` and `.safetensors` are read as they are needed.

    Which rows are held out depends on their number alone, not on the seed.

    Args:
        options: where it is, and how much of it is held out.

    Raises:
        InputError: it is not a file of finite vectors, or too short.
    """

    n_rows: int
    held_out: HeldOutRows

    def __init__(self, options: CachedOptions) -> None:
        self.path = Path(options.path)
        self.vectors = read_vectors(self.path)
        n, self.hidden_size = self.vectors.shape
        self.layers = _layer(options.layers)
        n_held_out = round(n * options.validation_fraction)
        self.n_rows = n - n_held_out
        if not self.n_rows:
            raise InputError(f"{self.path} holds {n} vectors: there is none to train on.")
        order = Permutation(n, 0, "held out")
        self._order, self._first = order, n_held_out
        self._max_norm, self._longest = options.max_norm, math.inf
        self.held_out = HeldOutRows(self, n_held_out)
        self.transformer = Name(self.path.name)
        self.text = Name(self.path.name, options.validation_fraction if n_held_out else 0.0)

    def open(self) -> None:
        """Find out how long the vectors may be."""
        if self._max_norm is not None:
            n = self.n_rows + self._first
            norms = lengths(self._read(np.unique(np.linspace(0, n - 1, MEDIAN_ROWS).astype(int))))
            self._longest = float(longest(norms[None], self._max_norm))

    def gather(self, rows: Integers) -> HiddenStates:
        """Return the training rows with these numbers, in their order."""
        return self.take(self._order(rows + self._first))

    def take_held_out(self, first: int, last: int) -> HiddenStates:
        """Return held-out rows `first` to `last` (exclusive)."""
        return self.take(self._order(np.arange(first, last)))

    def take(self, places: Integers) -> HiddenStates:
        """Return the vectors at places of the file; `position` is that place.

        Raises:
            InputError: one is not finite.
        """
        vectors = self._read(places)
        norms = lengths(vectors)
        if not bool(norms.isfinite().all()):
            bad = places[int((~norms.isfinite()).nonzero()[0])]
            raise InputError(f"Vector {bad} of {self.path} is not finite: leave such vectors out.")
        nowhere = torch.full((len(places),), -1)
        layer = torch.full((len(places),), self.layers[0])
        long = norms > self._longest
        vectors[long] = 0  # so that they do no harm even without weight, in a batch top-k say
        return HiddenStates(
            vectors, layer, nowhere, nowhere, torch.from_numpy(places), (~long).float()
        )

    def _read(self, places: Integers) -> Tensor:
        order = np.argsort(places)  # as they lie on the disk
        vectors = torch.empty(len(places), self.hidden_size)
        found = self.vectors.index_select(0, torch.from_numpy(places[order]))
        return vectors.index_copy_(0, torch.from_numpy(order), found.float())

    def statistics(self, kind: str) -> Statistics:
        """Return the statistics of the training rows, or of many of them."""
        sums = Sums.none(1, self.hidden_size)
        n = min(self.n_rows, STATISTICS_ROWS)
        for first in range(0, n, 4096):
            rows = self.gather(np.arange(first, min(first + 4096, n)))
            sums = sums.plus(Sums.of(rows.vectors[None, rows.weight > 0]))
        return sums.statistics(kind)

    def about(self) -> dict[str, Any]:
        """Return that there is no transformer, and the name of the file."""
        return {"transformer": None, "text": {"source": str(self.path)}}

    def identity(self) -> dict[str, object]:
        """Return name, shape and size of the file."""
        size = self.path.stat().st_size
        return {"vectors": [self.path.name, *self.vectors.shape, size]}

    @property
    def store(self) -> None:
        """Nothing: there is no text."""

    @property
    def pieces(self) -> Sequence[str]:
        """Nothing: there is no text."""
        return ()


class HeldOutRows:
    """The held-out rows of a file, in blocks of `BLOCK`.

    Args:
        rows: the file.
        n: how many are held out.
    """

    frame = Frame(block_length=1)

    def __init__(self, rows: PlainRows, n: int) -> None:
        self._rows, self._n = rows, n
        self.layers = rows.layers

    def __len__(self) -> int:
        return -(-self._n // BLOCK)

    def n_tokens(self, numbers: Integers) -> Integers:
        """Return how many rows each of these blocks has, `[b]`."""
        return np.minimum(BLOCK, self._n - numbers * BLOCK)

    def extract(self, numbers: Integers) -> TokenStates:
        """Return the rows of the blocks `numbers: [b]`."""
        firsts, sizes = numbers * BLOCK, self.n_tokens(numbers)
        parts = [
            self._rows.take_held_out(int(a), int(a + n)) for a, n in zip(firsts, sizes, strict=True)
        ]
        rows = HiddenStates.concatenate(parts)
        return TokenStates(rows.vectors[None], rows.layer[:1], *rows[2:])


def read_vectors(path: Path) -> Tensor:
    """Return the `[N, d]` floating-point numbers of a file; nothing in it is ever run.

    Raises:
        InputError: there are none, or more than one such array.
    """
    if not path.exists():
        raise InputError(f"hidden_states.path={path} is not there.")
    if path.suffix not in SUFFIXES:
        raise InputError(
            f"hidden_states.path={path} is neither a folder that dictlearn cache wrote nor a"
            f" {', '.join(SUFFIXES)} file of vectors."
        )
    arrays = _arrays(path)
    fitting = [array for array in arrays if array.ndim == 2 and _is_dense(array)]
    if len(fitting) != 1 or not fitting[0].numel():
        shapes = ", ".join(_said(array) for array in arrays) or "none"
        raise InputError(
            f"{path} must hold one array of floating-point vectors [N, d], and has: {shapes:.200}."
        )
    return fitting[0]


def _is_dense(array: Tensor) -> bool:
    in_memory = array.layout == torch.strided and array.device.type == "cpu"
    return in_memory and array.is_floating_point()


def _said(array: Tensor) -> str:
    kind = "" if array.layout == torch.strided else f" {array.layout}"
    return f"{list(array.shape)} {array.dtype}{kind}"


def _arrays(path: Path) -> list[Tensor]:
    if path.suffix == ".safetensors":
        return [*mapped(path).values()]
    if path.suffix == ".npy":
        try:
            array = np.load(path, mmap_mode="r" if path.stat().st_size else None)
            return [_without_warning(array)]
        except MemoryError:
            raise
        except Exception as error:  # numpy reads a header as Python does, and fails in as many ways
            raise InputError(f"{path} is no array of numbers ({error!r:.150}).") from None
    return _of_torch(path)


def _without_warning(array: np.ndarray[Any, Any]) -> Tensor:
    """Return an array as a tensor that shares its memory, which must not be written to."""
    if not isinstance(array, np.ndarray):
        raise TypeError("it holds several arrays, as a .npz does")
    if not array.dtype.isnative:
        raise ValueError(f"numbers of dtype {array.dtype} are not those of this machine")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)


def _of_torch(path: Path) -> list[Tensor]:
    for mapping in (True, False):  # files of old versions of torch cannot be mapped
        try:
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapping)
        except MemoryError:
            raise
        except Exception as error:  # what is no pickle fails in any way, down to an IndexError
            if not mapping:
                raise InputError(f"{path} is no file of tensors ({error!r:.150}).") from None
            continue
        values = [*found.values()] if isinstance(found, dict) else [found]
        return [value.detach() for value in values if isinstance(value, Tensor)]
    return []


def _layer(wanted: str | Sequence[int]) -> tuple[int, ...]:
    if wanted == "all":
        return (0,)
    if len(wanted) == 1 and type(wanted[0]) is int and wanted[0] >= 0:
        return (wanted[0],)
    raise InputError(
        f"hidden_states.layers={wanted}: the vectors of a plain file are of one layer; give all or"
        " a list of one index, such as [4]."
    )
