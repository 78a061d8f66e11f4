"""What a text source is: something with a name, a fingerprint and documents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple, Protocol, runtime_checkable

from dictlearn.errors import InputError, number, whole_number


class Document(NamedTuple):
    """One text.

    Attributes:
        id: stable name, e.g. ``torch:torch.nn.modules.linear`` or ``corpus.txt#3``.
        text: the text itself.
    """

    id: str
    text: str


class Place(NamedTuple):
    """Where a text broke off.

    Attributes:
        rows: rows of the dataset before it.
        state: what `datasets` needs to go on there, plain values.
        documents: documents that were yielded before it.
    """

    rows: int
    state: dict[str, Any]
    documents: int = 0


class Unfinished(InputError):  # noqa: N818 - it is not wrong, it is to be gone on with
    """A text broke off: what there is may be kept, and the rest be read later from `place`."""

    def __init__(self, message: str, place: Place) -> None:
        super().__init__(message)
        self.place = place


class TextSource(Protocol):
    """Where documents come from: the same ones in the same order, whenever they are read."""

    @property
    def validation_fraction(self) -> float:
        """Share of the documents that is never trained on, in [0, 1)."""

    @property
    def name(self) -> str:
        """Short name for logs and artefacts, e.g. ``local:corpus.txt``."""

    def fingerprint(self) -> str:
        """Return a hash that is cheap to get and changes whenever the documents would change."""

    def documents(self) -> Iterator[Document]:
        """Yield the documents, always in the same order."""


@runtime_checkable
class Resumable(Protocol):
    """A source that may raise `Unfinished`."""

    def documents_from(self, place: Place) -> Iterator[Document]:
        """Yield the documents from there on, as `TextSource.documents` would have."""


def digest(value: object) -> str:
    """Return 32 hexadecimal digits of BLAKE2b over the JSON of plain values."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


def check_fraction(fraction: object) -> float:
    """Return the validation fraction.

    Raises:
        InputError: it is outside [0, 1).
    """
    value = number("text.validation_fraction", fraction, 0.0, 1.0)
    if value == 1.0:
        raise InputError(
            "text.validation_fraction=1.0 leaves nothing to train on: give less than 1."
        )
    return value


def check_limit(limit: object) -> int | None:
    """Return ``text.max_documents``: None (all) or a whole number of at least 1.

    Raises:
        InputError: it is neither.
    """
    return None if limit is None else whole_number("text.max_documents", limit)


def limited(
    documents: Iterable[Document],
    min_characters: int,
    max_documents: int | None,
    origin: str,
    before: int = 0,
) -> Iterator[Document]:
    """Yield the first `max_documents` documents (all, if None) of at least `min_characters`; less
    `before` of them, which were yielded earlier.

    White space at both ends of a text does not count; a document of white space only is dropped.

    Raises:
        InputError: there is none; the message begins with `origin`, e.g. ``text.path=corpus``.
    """  # noqa: D205
    minimum = max(min_characters, 1)
    long_enough = (d for d in documents if len(d.text.strip()) >= minimum)
    empty = not before
    for document in islice(long_enough, max_documents and max_documents - before):
        empty = False
        yield document
    if empty:
        least = f" of at least text.min_characters={min_characters}" if min_characters else ""
        raise InputError(f"{origin} holds no text{least}.")
