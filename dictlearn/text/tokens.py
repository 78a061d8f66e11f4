"""From documents to tokens: once, with the model's own tokenizer, into a `TokenStore`."""

from __future__ import annotations

import json
import logging
import time
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from dictlearn.errors import InputError
from dictlearn.storage.atomic import atomic_folder
from dictlearn.text.documents import Document, TextSource, digest
from dictlearn.text.packing import Blocks, pack
from dictlearn.text.progress import Progress, reporting
from dictlearn.text.store import TokenStore, content_hash, digests, open_store, text_bytes

__all__ = ["Blocks", "TokenStore", "pack", "token_ids", "tokenize", "tokenizer_fingerprint"]

logger = logging.getLogger(__name__)

_STORE_VERSION = 2  # counted up whenever the same text would give another folder
_BATCH_DOCUMENTS = 512
_BATCH_CHARACTERS = 1 << 20


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Return a hash of what decides the token ids: class, size and rules of a fast tokenizer.

    Raises:
        InputError: the model has only a slow tokenizer.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"the tokenizer of transformer.path is a {type(tokenizer).__name__}, not a fast one: "
            "choose a model with a tokenizer.json."
        )
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    # Both change with the last call of the tokenizer and say nothing about its ids.
    rules.update(truncation=None, padding=None)
    return digest([type(tokenizer).__name__, len(tokenizer), rules])


def tokenize(
    source: TextSource, tokenizer: Any, directory: Path, progress: bool | Progress = True
) -> TokenStore:
    """Tokenise a text source, or reopen what an earlier run made of it.

    Several processes may do this at the same time: all of them read the same ids.

    Args:
        source: the documents. Exact duplicates and documents without tokens are dropped, counted
            in ``meta``.
        tokenizer: a fast tokenizer of `transformers`.
        directory: where stores lie, each in a folder named by its key (``data_dir``).
        progress: True: a bar on a terminal, lines in the log otherwise; False: neither; or a
            function of (documents, tokens) so far.

    Raises:
        InputError: no tokens at all, the source cannot be read, or the folder not be written.
    """
    rules = tokenizer_fingerprint(tokenizer)
    key = digest([_STORE_VERSION, source.fingerprint(), rules])
    path = Path(directory) / key
    if path.is_dir():
        logger.debug("tokens of %s: reading %s", source.name, path)
        return open_store(path)
    try:
        with atomic_folder(path) as folder, reporting(progress, source.name) as report:
            _write(folder, source, tokenizer, report, rules)
    except OSError as error:  # those of the source are InputErrors already
        raise InputError(
            f"data_dir={directory}: the tokenised text cannot be written: {error}."
        ) from error
    return open_store(path)


@dataclass
class _Counts:
    """What `meta.json` says about the documents."""

    documents: int = 0
    tokens: int = 0
    characters: int = 0
    dropped_duplicates: int = 0
    dropped_without_tokens: int = 0


@dataclass
class _Index:
    """Everything but the token ids, which never stay in memory."""

    offsets: array[int] = field(default_factory=lambda: array("q", [0]))
    hashes: array[int] = field(default_factory=lambda: array("Q"))
    ids: list[str] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)
    counts: _Counts = field(default_factory=_Counts)


def _batches(documents: Iterable[Document], index: _Index) -> Iterator[list[tuple[str, str, int]]]:
    """Yield lists of (id, text, content hash) without exact duplicates."""
    batch: list[tuple[str, str, int]] = []
    characters = 0
    for document in documents:
        content = text_bytes(document.text)
        key = content_hash(content)
        if key in index.seen:
            index.counts.dropped_duplicates += 1
            continue
        index.seen.add(key)
        batch.append((document.id, content.decode("utf-8"), key))
        characters += len(document.text)
        if len(batch) == _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def token_ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Return the ids of each text, no special tokens added, nothing truncated.

    ``[CLS]`` or ``<|endoftext|>`` written out in a text are split like ordinary text
    (`split_special_tokens`): data must not be able to put control tokens into the stream.
    """
    encoded: list[list[int]] = tokenizer(
        texts,
        add_special_tokens=False,
        truncation=False,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        split_special_tokens=True,
        verbose=False,  # no warning that a text is longer than the model's context
    )["input_ids"]
    return encoded


def _write_header(file: IO[bytes], n_tokens: int) -> None:
    """Write the head of tokens.npy; numpy pads it, so that any number of tokens fits in."""
    file.seek(0)
    header = {"descr": "<i4", "fortran_order": False, "shape": (n_tokens,)}
    np.lib.format.write_array_header_1_0(file, header)


def _write_tokens(file: IO[bytes], source: TextSource, tokenizer: Any, report: Progress) -> _Index:
    index = _Index()
    counts = index.counts
    _write_header(file, 0)
    for batch in _batches(source.documents(), index):
        encoded = token_ids(tokenizer, [text for _, text, _ in batch])
        np.fromiter(chain.from_iterable(encoded), dtype="<i4").tofile(file)
        for (id, text, key), ids in zip(batch, encoded, strict=True):
            if not ids:
                counts.dropped_without_tokens += 1
                continue
            counts.tokens += len(ids)
            counts.characters += len(text)
            index.offsets.append(counts.tokens)
            index.hashes.append(key)
            index.ids.append(id)
        counts.documents = len(index.ids)
        report(counts.documents, counts.tokens)
    _write_header(file, counts.tokens)
    return index


def _write(folder: Path, source: TextSource, tokenizer: Any, report: Progress, rules: str) -> None:
    """Fill the folder of a new store."""
    started = time.perf_counter()
    with (folder / "tokens.npy").open("wb") as file:
        index = _write_tokens(file, source, tokenizer, report)
    if not index.counts.tokens:
        raise InputError(f"{source.name} holds no text: the tokenizer found no token in it.")
    _save(folder / "offsets.npy", np.frombuffer(index.offsets, dtype=np.int64))
    _save(folder / "content_hashes.npy", np.frombuffer(index.hashes, dtype=np.uint64))
    (folder / "document_ids.json").write_text(json.dumps(index.ids))
    meta = {
        "version": _STORE_VERSION,
        "source": source.name,
        "source_fingerprint": source.fingerprint(),
        "tokenizer": type(tokenizer).__name__,
        "tokenizer_fingerprint": rules,
        **asdict(index.counts),
        "xxh3_64": digests(folder),
        "seconds": round(time.perf_counter() - started, 3),
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=2))
    logger.info(
        "tokens of %s: %d documents, %d tokens, %.1f s; dropped %d duplicates, %d without tokens",
        *(source.name, meta["documents"], meta["tokens"], meta["seconds"]),
        *(meta["dropped_duplicates"], meta["dropped_without_tokens"]),
    )


def _save(path: Path, values: NDArray[Any]) -> None:
    with path.open("wb") as file:
        np.save(file, values)
