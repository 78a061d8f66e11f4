"""Local files as streams of rows: lines of a text file, or one column of a table."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from dictlearn.errors import InputError, nearest

TEXT_SUFFIXES = frozenset({".txt", ".md", ".text", ".rst", ".raw", ".tokens"})
JSON_SUFFIXES = frozenset({".jsonl", ".ndjson", ".json"})
TABLE_SUFFIXES = JSON_SUFFIXES | {".parquet"}
_BATCH_ROWS = 1000


def suffix(path: Path) -> str:
    """Return the suffix in lower case; that of ``corpus.jsonl.gz`` is ``.jsonl``."""
    inner = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    return inner.suffix.lower()


def is_table(path: Path) -> bool:
    """Tell whether a file has rows and columns rather than lines."""
    return suffix(path) in TABLE_SUFFIXES


def is_text(path: Path) -> bool:
    """Tell whether a file found in a folder is one that we read."""
    return suffix(path) in TEXT_SUFFIXES | TABLE_SUFFIXES


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, plain or gzip, and tell in one sentence why it cannot be read."""
    try:
        with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as file:
            yield cast(IO[bytes], file)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"text.path: {path} cannot be read: {reason}.") from error


def _decoded(raw: bytes, path: Path, offset: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"text.path: {path} is not UTF-8 text: byte {offset + error.start} is "
            f"0x{raw[error.start]:02x}; save it as UTF-8."
        ) from error


def lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file (plain or ``.gz``) without their ends.

    Raises:
        InputError: the file cannot be read, or is not UTF-8 (the message says at which byte).
    """
    offset = 0
    with _opened(path) as file:
        for raw in file:
            line = _decoded(raw, path, offset)
            yield (line.removeprefix("\ufeff") if offset == 0 else line).rstrip("\r\n")
            offset += len(raw)


def text_of(row: object, column: str, where: str) -> str:
    """Return the text of one row of a table; nothing (null) is an empty text.

    Raises:
        InputError: the row has no such column, or something else than text stands there.
    """
    if not isinstance(row, dict):
        raise InputError(
            f"text.path: {where} holds a {type(row).__name__} where a row of the form "
            f'{{"{column}": "..."}} is needed.'
        )
    check_column(column, row, where)
    return check_text(row[column], column, where)


def check_column(column: str, columns: Iterable[str], where: str) -> None:
    """Raise an InputError that lists the columns if `column` is not one of them."""
    names = [str(name) for name in columns]
    if column not in names:
        raise InputError(
            f"text.column={column} is not a column of {where}, which has "
            f"{', '.join(names) or 'none'}.{nearest(column, names)}"
        )


def check_text(value: object, column: str, where: str) -> str:
    """Return a cell's text, "" for null; raise an InputError if it is not text."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(f"text.column={column} of {where} holds {type(value).__name__}, not text.")
    return value


def _json_values(path: Path) -> Iterator[tuple[str, object]]:
    """Yield (where it stands, value) of JSON lines, or of the one list in a ``.json`` file."""
    if suffix(path) == ".json":
        with _opened(path) as file:
            content = file.read()
        text = _decoded(content, path, 0).removeprefix("\ufeff")
        if text.lstrip()[:1] == "[":
            for index, value in enumerate(cast(list[object], _parsed(text, str(path)))):
                yield f"{path}, entry {index + 1}", value
            return
    for index, line in enumerate(lines(path)):
        if line.strip():
            where = f"{path}, line {index + 1}"
            yield where, _parsed(line, where)


def _parsed(text: str, where: str) -> object:
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"text.path: {where} is not valid JSON: {error}.") from error
    return value


def _parquet_texts(path: Path, column: str) -> Iterator[str]:
    import pyarrow as arrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            check_column(column, file.schema_arrow.names, str(path))
            for batch in file.iter_batches(_BATCH_ROWS, columns=[column]):
                for value in batch.column(0).to_pylist():
                    yield check_text(value, column, str(path))
    except (OSError, UnicodeDecodeError, arrow.ArrowException) as error:
        raise InputError(f"text.path: {path} cannot be read as parquet: {error}.") from error


def rows(path: Path, column: str) -> Iterator[str]:
    """Yield the texts of one column of a jsonl, json or parquet file.

    Raises:
        InputError: the file is corrupt, or the column is missing or holds no text.
    """
    if suffix(path) == ".parquet":
        yield from _parquet_texts(path, column)
        return
    for where, value in _json_values(path):
        yield text_of(value, column, where)
