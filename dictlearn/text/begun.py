"""What is known of documents as they are tokenised, and the beginning of a text that broke off.

DIRECTORY/<key>.begun/   a token store of the documents before that place, with
seen.npy               uint64, hashes of all texts, also of those that were dropped
meta.json              also the place, and how many documents were dropped
"""

from __future__ import annotations

import json
import logging
import shutil
from array import array
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dictlearn.errors import InputError
from dictlearn.storage.atomic import atomic_folder
from dictlearn.text.documents import Place
from dictlearn.text.store import digests, open_store

logger = logging.getLogger(__name__)


@dataclass
class Counts:
    """What `meta.json` says about the documents."""

    documents: int = 0
    tokens: int = 0
    characters: int = 0
    dropped_duplicates: int = 0
    dropped_without_tokens: int = 0

    @property
    def read(self) -> int:
        """All documents that came."""
        return self.documents + self.dropped_duplicates + self.dropped_without_tokens


@dataclass
class Index:
    """Everything but the token ids, which never stay in memory."""

    offsets: array[int] = field(default_factory=lambda: array("q", [0]))
    hashes: array[int] = field(default_factory=lambda: array("Q"))
    ids: list[str] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)
    counts: Counts = field(default_factory=Counts)

    def save(self, folder: Path, about: dict[str, Any]) -> None:
        """Complete a store in which the tokens are already."""
        _save(folder / "offsets.npy", np.frombuffer(self.offsets, dtype=np.int64))
        _save(folder / "content_hashes.npy", np.frombuffer(self.hashes, dtype=np.uint64))
        (folder / "document_ids.json").write_text(json.dumps(self.ids))
        meta = {**about, **asdict(self.counts), "xxh3_64": digests(folder)}
        (folder / "meta.json").write_text(json.dumps(meta, indent=2))


class Begun(NamedTuple):
    """The beginning of a store, for whoever goes on with it.

    Attributes:
        path: of the folder, beside that of the store.
    """

    path: Path

    def read(self, tokens: IO[bytes]) -> tuple[Index, Place] | None:
        """Return what was known and where to go on, its tokens copied; None if nothing is there.

        What is damaged, or names its place as another version of `datasets`, is of no use.
        """
        if not self.path.is_dir():
            return None
        try:
            store = open_store(self.path)
            seen = np.load(self.path / "seen.npy")
            place = Place(**store.meta["place"])
            counts = Counts(**{name: store.meta[name] for name in asdict(Counts())})
            if store.meta["datasets"] != version("datasets"):
                raise ValueError(f"{self.path} is of datasets {store.meta['datasets']}")
        except (InputError, OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("begun anew: %s", error)
            self.remove()
            return None
        tokens.seek(0)
        with (self.path / "tokens.npy").open("rb") as earlier:
            shutil.copyfileobj(earlier, tokens)
        offsets, hashes = array("q", store.offsets.tobytes()), array("Q")
        hashes.frombytes(store.content_hashes.tobytes())
        logger.info("going on after %d documents, %d tokens", counts.documents, counts.tokens)
        return Index(offsets, hashes, store.document_ids, set(seen.tolist()), counts), place

    def keep(self, folder: Path, index: Index, place: Place, about: dict[str, Any]) -> None:
        """Keep the tokens in a folder, which all come before a place, and the index.

        Args:
            folder: of the store that is not finished; its tokens are taken away.
            index: of them.
            place: where the text broke off.
            about: what `meta.json` says of source and tokenizer.
        """
        self.remove()
        if not index.counts.tokens:
            return
        with atomic_folder(self.path) as new:
            (folder / "tokens.npy").rename(new / "tokens.npy")
            _save(new / "seen.npy", np.fromiter(index.seen, dtype=np.uint64))
            reached = place._replace(documents=index.counts.read)
            place_of = {"place": reached._asdict(), "datasets": version("datasets")}
            index.save(new, {**about, **place_of})

    def remove(self) -> None:
        """Remove it."""
        shutil.rmtree(self.path, ignore_errors=True)


def _save(path: Path, values: NDArray[Any]) -> None:
    with path.open("wb") as file:
        np.save(file, values)
