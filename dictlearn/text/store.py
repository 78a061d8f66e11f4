"""Tokenised text on disk: written once for each text and tokenizer, memory-mapped ever after.

    DIRECTORY/<key>/
      tokens.npy           int32 [T], the documents one after the other, no special tokens
      offsets.npy          int64 [D + 1], document d is tokens[offsets[d] : offsets[d + 1]]
      content_hashes.npy   uint64 [D], BLAKE2b of the text
      document_ids.json    [D]
      meta.json            what was read, kept and dropped; the digests of the other files

The key says the content, so whoever finds the folder need not look inside.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from dictlearn.errors import InputError, one_line

_CHUNK = 1 << 22  # tokens counted at once


@dataclass(frozen=True, eq=False)
class TokenStore:
    """Documents as token ids.

    Attributes:
        tokens: int32 [T], memory-mapped, the documents one after the other, no special tokens.
        offsets: int64 [D + 1], where each document begins.
        document_ids: [D] stable names.
        content_hashes: uint64 [D], of the text alone.
        meta: source, tokenizer and counts, as in ``meta.json``.
        path: the folder.
    """

    tokens: NDArray[np.int32]
    offsets: NDArray[np.int64]
    document_ids: list[str]
    content_hashes: NDArray[np.uint64]
    meta: dict[str, Any]
    path: Path

    def held_out(self, fraction: float) -> NDArray[np.bool_]:
        """Choose the documents that are never trained on, bool [D].

        A document is chosen by the hash of its own text, whatever stands beside it. Where that
        chooses none or all, the smallest hash is held out or the largest kept.

        Raises:
            InputError: there is one document only, and the fraction is not 0.
        """
        n_documents = len(self.content_hashes)
        if fraction <= 0:
            return np.zeros(n_documents, dtype=bool)
        if n_documents < 2:
            raise InputError(
                f"text.validation_fraction={fraction} needs at least two documents, but "
                f"{self.meta['source']} holds one: set text.split_documents=section (local text) "
                "or text.validation_fraction=0."
            )
        threshold = np.uint64(min(int(fraction * 2**64), 2**64 - 1))
        chosen: NDArray[np.bool_] = self.content_hashes < threshold
        chosen[np.argmin(self.content_hashes)] = True
        chosen[np.argmax(self.content_hashes)] = False
        return chosen

    def locate(self, index: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the document of each token index, and the token's position in it (both int64)."""
        positions = np.asarray(index, dtype=np.int64)
        document = np.searchsorted(self.offsets, positions, side="right").astype(np.int64) - 1
        return document, positions - self.offsets[document]

    def counts(self, documents: NDArray[np.bool_], vocabulary: int) -> NDArray[np.int64]:
        """Count each token id over the chosen documents.

        Args:
            documents: bool [D], which documents count.
            vocabulary: V, the number of token ids of the model.

        Returns:
            int64 [V].

        Raises:
            InputError: a token id is V or more: tokenizer and model do not belong together.
        """
        total = np.zeros(vocabulary, dtype=np.int64)
        for start in range(0, len(self.tokens), _CHUNK):
            stop = min(start + _CHUNK, len(self.tokens))
            first = np.searchsorted(self.offsets, start, side="right") - 1
            last = np.searchsorted(self.offsets, stop, side="left")
            bounds = np.clip(self.offsets[first : last + 1], start, stop)
            lengths = bounds[1:] - bounds[:-1]
            kept = self.tokens[start:stop][np.repeat(documents[first:last], lengths)]
            found = np.bincount(kept, minlength=vocabulary)
            if len(found) > vocabulary:
                raise InputError(
                    f"token id {len(found) - 1} >= vocabulary {vocabulary}: the tokenizer and the "
                    "model of transformer.path differ."
                )
            total += found
        return total


def text_bytes(text: str) -> bytes:
    """Return the text in UTF-8; a lone surrogate, which UTF-8 cannot say, becomes U+FFFD."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        pairs = text.encode("utf-16-le", "surrogatepass")
        return pairs.decode("utf-16-le", "replace").encode("utf-8")


def content_hash(content: bytes) -> int:
    """Return the 64 bits by which a text is recognised and held out."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def digests(path: Path) -> dict[str, str]:
    """Return xxh3_64 of every file of a store but ``meta.json``, in hexadecimal, by name.

    Reading for it costs a second for 6 GB, and finds the bit that no file format here notices.
    """
    found = {}
    for file in sorted(entry for entry in path.iterdir() if entry.name != "meta.json"):
        digest = xxhash.xxh3_64()
        with file.open("rb") as content:
            while part := content.read(_CHUNK):
                digest.update(part)
        found[file.name] = digest.hexdigest()
    return found


def open_store(path: Path) -> TokenStore:
    """Open a folder that `tokenize` wrote; its tokens are read from disk as they are needed.

    Raises:
        InputError: the folder is damaged.
    """
    try:
        meta = json.loads((path / "meta.json").read_bytes())
        known, found = meta["xxh3_64"], digests(path)
        wrong = sorted(name for name in known if found.get(name) != known[name])
        if wrong:
            raise ValueError(f"{wrong[0]} is not what was written")
        tokens = np.load(path / "tokens.npy", mmap_mode="r")
        offsets = np.load(path / "offsets.npy")
        hashes = np.load(path / "content_hashes.npy")
        ids = json.loads((path / "document_ids.json").read_bytes())
        kinds = (tokens.dtype, offsets.dtype, hashes.dtype) == (np.int32, np.int64, np.uint64)
        if not kinds or not len(ids) == len(hashes) == len(offsets) - 1:
            raise ValueError("its files do not belong together")
    except Exception as error:  # numpy reads a header as Python does, and fails in as many ways
        raise InputError(
            f"the tokenised text in {path} is damaged ({one_line(error)}): delete that folder and "
            "run again."
        ) from error
    return TokenStore(tokens, offsets, ids, hashes, meta, path)
