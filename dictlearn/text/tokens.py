"""From documents to tokens: once, with the model's own tokenizer, into a `TokenStore`."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np

from dictlearn.errors import InputError
from dictlearn.storage.atomic import atomic_folder, sweep
from dictlearn.text.begun import Begun, Index
from dictlearn.text.documents import Document, Resumable, TextSource, Unfinished, digest
from dictlearn.text.packing import Blocks, pack
from dictlearn.text.progress import Progress, reporting
from dictlearn.text.store import TokenStore, content_hash, open_store, text_bytes

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
    sweep(path.parent)
    try:
        with atomic_folder(path) as folder, reporting(progress, source.name) as report:
            _write(folder, source, tokenizer, report, rules, Begun(path.with_name(f"{key}.begun")))
    except OSError as error:  # those of the source are InputErrors already
        raise InputError(
            f"data_dir={directory}: the tokenised text cannot be written: {error}."
        ) from error
    return open_store(path)


def _batches(documents: Iterable[Document], index: Index) -> Iterator[list[tuple[str, str, int]]]:
    """Yield lists of (id, text, content hash) without exact duplicates."""
    batch: list[tuple[str, str, int]] = []
    characters = 0
    broken: Unfinished | None = None
    try:
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
    except Unfinished as error:
        broken = error
    if batch:
        yield batch
    if broken is not None:
        raise broken


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


def _write_tokens(
    file: IO[bytes], documents: Iterable[Document], tokenizer: Any, report: Progress, index: Index
) -> None:
    """Append the tokens of the documents to those that the index knows of."""
    counts = index.counts
    try:
        for batch in _batches(documents, index):
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
    finally:
        _write_header(file, counts.tokens)


def _write(
    folder: Path, source: TextSource, tokenizer: Any, report: Progress, rules: str, begun: Begun
) -> None:
    """Fill the folder of a new store, from where an earlier attempt broke off."""
    started = time.perf_counter()
    about = {
        "version": _STORE_VERSION,
        "source": source.name,
        "source_fingerprint": source.fingerprint(),
        "tokenizer": type(tokenizer).__name__,
        "tokenizer_fingerprint": rules,
    }
    index, documents = Index(), source.documents
    with (folder / "tokens.npy").open("wb") as file:
        _write_header(file, 0)
        if isinstance(source, Resumable) and (found := begun.read(file)) is not None:
            index, place = found
            documents = partial(source.documents_from, place)
        try:
            _write_tokens(file, documents(), tokenizer, report, index)
        except Unfinished as stop:
            file.close()
            begun.keep(folder, index, stop.place, about)
            raise
    counts = index.counts
    if not counts.tokens:
        raise InputError(f"{source.name} holds no text: the tokenizer found no token in it.")
    seconds = round(time.perf_counter() - started, 3)
    index.save(folder, {**about, "seconds": seconds})
    begun.remove()
    logger.info(
        "tokens of %s: %d documents, %d tokens, %.1f s; dropped %d duplicates, %d without tokens",
        *(source.name, counts.documents, counts.tokens, seconds),
        *(counts.dropped_duplicates, counts.dropped_without_tokens),
    )
