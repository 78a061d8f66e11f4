"""One shard: the hidden states of some tokens in all layers, as a safetensors file.

Token by token, and within a token layer by layer: a vector is one piece of `d` numbers at a place
that is found by multiplication, and so is read alone from a memory map. Whatever all layers of a
token share (its id, document, position) is there once per token.

    vectors              [t, L, d]   in the dtype of the cache
    token, document, position  int32 [t]
    sound                uint8 [t]   0: not finite when it was made, has no weight
    statistics.*         sums over the sound tokens, float64: they merge across shards

Legend: t tokens, L stored layers, d width.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dictlearn.errors import InputError
from dictlearn.hidden_states.batch import TokenStates
from dictlearn.hidden_states.cache.manifest import Shard
from dictlearn.hidden_states.statistics import Sums
from dictlearn.storage.atomic import atomic_file

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
COLUMNS = ("token", "document", "position", "sound")
_HEADER = struct.Struct("<Q")


class Layout(NamedTuple):
    """The sizes of a shard.

    Attributes:
        tokens: number of tokens.
        layers: number of layers.
        width: of a vector.
        dtype: of the vectors.
    """

    tokens: int
    layers: int
    width: int
    dtype: torch.dtype

    def tensors(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Return dtype and shape of every tensor, in the order of the file."""
        t, n_layers, d = self.tokens, self.layers, self.width
        vectors = t * n_layers * d * self.dtype.itemsize
        found: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
            "vectors": (self.dtype, (t, n_layers, d)),
            "padding": (torch.uint8, (-vectors % 8,)),  # what follows begins at a multiple of 8
            "statistics.n": (torch.int64, ()),
            "statistics.total": (torch.float64, (n_layers, d)),
            "statistics.norms": (torch.float64, (n_layers,)),
            "statistics.squares": (torch.float64, (n_layers,)),
        }
        found |= dict.fromkeys(COLUMNS[:3], (torch.int32, (t,)))
        return found | {"sound": (torch.uint8, (t,))}

    def header(self) -> bytes:
        """Return the head of the file, as the format wants it."""
        entries: dict[str, Any] = {}
        end = 0
        for name, (dtype, shape) in self.tensors().items():
            start, end = end, end + dtype.itemsize * math.prod(shape)
            entry = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [start, end]}
            entries[name] = entry
        body = json.dumps(entries, separators=(",", ":")).encode()
        body += b" " * (-len(body) % 8)
        return _HEADER.pack(len(body)) + body

    def bytes(self) -> int:
        """Return the size of the file."""
        sizes = (dtype.itemsize * math.prod(shape) for dtype, shape in self.tensors().values())
        return len(self.header()) + sum(sizes)


def write_shard(path: Path, layout: Layout, parts: Iterable[TokenStates]) -> Shard:
    """Write a shard in one go, holding one part in memory at a time.

    Args:
        path: of the file, which takes its name when it is complete.
        layout: its sizes.
        parts: consecutive tokens with all layers, together as many as the layout says.

    Raises:
        InputError: a hidden state is beyond the range of the dtype.
    """
    digest = xxhash.xxh3_64()
    columns: dict[str, list[Tensor]] = {name: [] for name in COLUMNS}
    sums = Sums.none(layout.layers, layout.width)
    with atomic_file(path) as file:

        def put(data: Tensor | bytes) -> None:
            raw = data if isinstance(data, bytes) else _bytes(data)
            digest.update(raw)
            file.write(raw)

        put(layout.header())
        for part in parts:
            vectors = part.vectors.to("cpu", layout.dtype).transpose(0, 1).contiguous()
            sound = (part.weight != 0).cpu()
            sums = sums.plus(Sums.of(vectors[sound].transpose(0, 1)))
            if not bool(sums.squares.isfinite().all()):
                raise InputError(
                    f"Hidden states are beyond the range of dtype={_NAMES[layout.dtype]}: set"
                    " dtype=bfloat16 or dtype=float32."
                )
            put(vectors)
            for name, column in zip(COLUMNS, (*part[2:5], sound), strict=True):
                columns[name].append(column.cpu())
        rest = {f"statistics.{name}": value for name, value in sums._asdict().items()}
        rest |= {name: torch.cat(pieces) for name, pieces in columns.items()}
        for name, (dtype, shape) in [*layout.tensors().items()][1:]:
            value = rest.get(name, torch.zeros(shape)).to(dtype)
            assert value.shape == shape, (name, value.shape, shape)
            put(value)
        size = file.tell()
    return Shard(path.name, layout.tokens, size, digest.hexdigest())


def _bytes(values: Tensor) -> bytes:
    return values.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def mapped(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file as views of a memory map; nothing is read yet.

    They must not be written to.

    Raises:
        InputError: it is not such a file, or holds a kind of number that is not read here.
    """
    try:
        with safe_open(path, "pt") as tensors:  # checks that shapes, offsets and size agree
            names = list(tensors.keys())
        with path.open("rb") as file:
            (length,) = _HEADER.unpack(file.read(_HEADER.size))
            header = json.loads(file.read(length))
            view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return {name: _view(view, _HEADER.size + length, header[name]) for name in names}
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is no safetensors file ({error!r:.150}).") from None


def _view(view: mmap.mmap, start: int, entry: dict[str, Any]) -> Tensor:
    dtype, shape = DTYPES.get(entry["dtype"]), entry["shape"]
    if dtype is None:
        return torch.empty(0)
    offset, n = start + entry["data_offsets"][0], math.prod(shape)
    if n == 0:
        return torch.empty(shape, dtype=dtype)
    with warnings.catch_warnings():  # that it is read-only, which it is on purpose
        warnings.simplefilter("ignore", UserWarning)
        flat = torch.frombuffer(view, dtype=dtype, count=n, offset=offset)
    return flat.view(shape)
