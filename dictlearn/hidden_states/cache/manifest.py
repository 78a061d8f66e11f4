"""The manifest of a cache: what it is of, and the size and digest of every file in it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import xxhash

from dictlearn.errors import InputError
from dictlearn.storage.atomic import atomic_file

FORMAT = 1
NAME = "manifest.json"
LARGEST = 10 << 20
"""A manifest is not larger than that: a hostile one must not fill the memory."""
_CHUNK = 1 << 22
_SEAL = b'{\n "xxh3_64": "'
_NO_DIGEST = "0" * 16
_FILE = re.compile(r"(train|validation)-\d{5,9}\.safetensors")

T = TypeVar("T")


class Stored(NamedTuple):
    """A file of a cache.

    Attributes:
        file: its name below the folder of the cache.
        bytes: its size.
        xxh3_64: its digest, 16 hexadecimal digits.
    """

    file: str
    bytes: int
    xxh3_64: str


class Shard(NamedTuple):
    """A file with the hidden states of some tokens in all layers.

    Attributes:
        file: its name below the folder of the cache.
        tokens: how many.
        bytes: its size.
        xxh3_64: its digest, 16 hexadecimal digits.
    """

    file: str
    tokens: int
    bytes: int
    xxh3_64: str


class Manifest(NamedTuple):
    """What a cache is of, and what it consists of.

    Attributes:
        recipe: every option that decides the content, by the name a user knows it by.
        transformer: the transformer as it describes itself.
        text: source, block length and special tokens, and how much of it there is.
        layers: indices of `hidden_states` that are stored.
        hidden_size: width of a vector.
        dtype: of the stored vectors.
        train: shards of training text, in the order of the text.
        validation: shards of held-out text.
        files: all other files.
    """

    recipe: dict[str, Any]
    transformer: dict[str, Any]
    text: dict[str, Any]
    layers: tuple[int, ...]
    hidden_size: int
    dtype: str
    train: tuple[Shard, ...]
    validation: tuple[Shard, ...]
    files: tuple[Stored, ...]

    def entries(self) -> list[Stored | Shard]:
        """Return all files but the manifest itself."""
        return [*self.train, *self.validation, *self.files]


def digest_of(path: Path) -> str:
    """Return the xxh3_64 of a file in hexadecimal digits; 6 GB a second and core."""
    found = xxhash.xxh3_64()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()


def stored(folder: Path, name: str) -> Stored:
    """Return size and digest of a file as they are now."""
    path = folder / name
    return Stored(name, path.stat().st_size, digest_of(path))


def check(folder: Path, entry: Stored | Shard, *, content: bool = True) -> None:
    """Check a file against what the manifest says.

    Args:
        folder: of the cache.
        entry: the file.
        content: whether its digest is checked, too.

    Raises:
        InputError: it is not there, or not what was written.
    """
    path = folder / entry.file
    try:
        size = path.stat().st_size
        found = digest_of(path) if content and size == entry.bytes else entry.xxh3_64
    except OSError as error:
        raise InputError(
            f"{path} of the cache cannot be read ({_reason(error)}): {_advice(entry)}."
        ) from None
    if size != entry.bytes:
        raise InputError(
            f"{path} of the cache is damaged: it has {size} bytes instead of {entry.bytes}; "
            f"{_advice(entry)}."
        )
    if found != entry.xxh3_64:
        raise InputError(
            f"{path} of the cache is damaged: its xxh3_64 is {found} instead of {entry.xxh3_64}; "
            f"{_advice(entry)}."
        )


def write(folder: Path, manifest: Manifest) -> None:
    """Write the manifest with a digest of itself: the cache is finished."""
    body = manifest._asdict()
    for key in ("train", "validation", "files"):
        body[key] = [entry._asdict() for entry in body[key]]
    text = json.dumps({"xxh3_64": _NO_DIGEST, "format": FORMAT, **body}, indent=1) + "\n"
    sealed = text.replace(_NO_DIGEST, xxhash.xxh3_64(text.encode()).hexdigest(), 1)
    with atomic_file(folder / NAME) as file:
        file.write(sealed.encode())


def read(folder: Path) -> Manifest:
    """Read the manifest of a finished cache, and check it against the digest in it.

    Raises:
        InputError: there is none, it is damaged, or from a newer version.
    """
    path = folder / NAME
    try:
        if path.stat().st_size > LARGEST:
            raise InputError(f"{path} is damaged: a manifest has at most {LARGEST} bytes.")
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(
            f"{folder} is not a finished cache of hidden states (it has no {NAME}): make one with"
            f" dictlearn cache path={folder}, which goes on where it was stopped."
        ) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {_reason(error)}.") from None
    start = len(_SEAL)
    said = data[start : start + 16]
    unsealed = data[:start] + _NO_DIGEST.encode() + data[start + 16 :]
    found = xxhash.xxh3_64(unsealed).hexdigest()
    if not data.startswith(_SEAL) or found.encode() != said:
        raise InputError(
            f"{path} is damaged: its xxh3_64 is {found} instead of"
            f" {said.decode('ascii', 'backslashreplace')}; make the cache anew."
        )
    return _understood(path, data)


def _understood(path: Path, data: bytes) -> Manifest:
    try:
        body = json.loads(data)
        if body["format"] != FORMAT:
            raise InputError(
                f"{path} has format {body['format']}, this version reads {FORMAT}: update "
                "transformer-factors."
            )
        return Manifest(
            recipe=_a(dict, body["recipe"]),
            transformer=_a(dict, body["transformer"]),
            text=_a(dict, body["text"]),
            layers=tuple(_count(layer) for layer in _a(list, body["layers"])),
            hidden_size=_count(body["hidden_size"]),
            dtype=_a(str, body["dtype"]),
            train=_entries(Shard, body["train"], _is_shard),
            validation=_entries(Shard, body["validation"], _is_shard),
            files=_entries(Stored, body["files"], _is_inside),
        )
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no manifest of a cache ({error!r:.100}).") from None


def _entries(kind: Callable[..., T], listed: Any, allowed: Callable[[str], bool]) -> tuple[T, ...]:
    made = []
    for entry in _a(list, listed):
        if not allowed(_a(str, entry["file"])):
            raise ValueError(f"{entry['file']!r} is no file of a cache")
        for key, value in entry.items():
            _ = _a(str, value) if key in ("file", "xxh3_64") else _count(value)
        made.append(kind(**entry))
    return tuple(made)


def _is_shard(name: str) -> bool:
    return _FILE.fullmatch(name) is not None


def _is_inside(name: str) -> bool:
    return re.fullmatch(r"(text/)?[a-z_]+\.[a-z]+", name) is not None


def _a(kind: type[T], value: Any) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r:.50} is no {kind.__name__}")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(f"{value!r:.50} is no number of things")
    return value


def _advice(entry: Stored | Shard) -> str:
    repair = "the dictlearn cache command that made it makes it anew"
    skip = ", and hidden_states.on_damage=skip leaves it out"
    return repair + (skip if isinstance(entry, Shard) else "")


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
