"""From token ids back to text: pieces as they read, and the surroundings of a token."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from dictlearn.errors import InputError

if TYPE_CHECKING:
    from dictlearn.text import TokenStore


class Context(NamedTuple):
    """Tokens around a token of a document.

    Attributes:
        ids: token ids, in order.
        target: index of the token in `ids`; -1 for a special token, which is not in the text.
    """

    ids: list[int]
    target: int


def context(store: TokenStore, document: int, position: int, before: int, after: int) -> Context:
    """Return up to `before` and `after` tokens around token `position` of a document.

    Position -1 (a special token) gives the document's first `after` tokens.

    Raises:
        InputError: the store has no such document, or the document no such token.
    """
    n_documents = len(store.offsets) - 1
    if not 0 <= document < n_documents:
        raise InputError(f"document {document} is not one of the text's {n_documents}.")
    start, end = int(store.offsets[document]), int(store.offsets[document + 1])
    if not -1 <= position < end - start:
        raise InputError(f"document {document} has {end - start} tokens, and no token {position}.")
    first = max(start + position - before, start)
    last = min(start + position + after + 1, end)
    target = start + position - first if position >= 0 else -1
    return Context(store.tokens[first:last].tolist(), target)


def decode_tokens(tokenizer: Any, ids: Iterable[int]) -> list[str]:
    """Return every token as it reads within a sentence, with its leading space if it has one.

    A token alone decodes differently from one in a text (``##ing``, or a lost space), so each is
    decoded behind the letter "a", which is then taken away: that works for every tokenizer.
    """
    ids = [int(i) for i in ids]
    anchor = tokenizer.encode("a", add_special_tokens=False)
    prefix = tokenizer.decode(anchor)
    pieces: dict[int, str] = {}
    for i in set(ids):
        piece = tokenizer.decode([*anchor, i])
        follows = piece.startswith(prefix)
        pieces[i] = piece[len(prefix) :] if follows else tokenizer.decode([i])
    return [pieces[i] for i in ids]
