"""Word pieces as text: `##ing`, byte-level and SentencePiece tokens, put together to words."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

Style = Literal["wordpiece", "bytes", "sentencepiece", "spaced", "loose"]
"""How tokens say where words begin. ``spaced`` and ``loose`` tokens are text with a leading space;
loose ones have it before every sign, too, so that a space there says nothing about the text."""

# A byte-level vocabulary writes every byte as one visible character: printable Latin-1 as itself,
# the rest in order from U+0100 on (a space is U+0120).
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_REST = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTE_OF = {chr(byte): byte for byte in _PRINTABLE}
_BYTE_OF |= {chr(256 + place): byte for place, byte in enumerate(_REST)}

_JOINERS = {"\u200c", "\u200d"}  # part of emoji and of several scripts
_SYMBOLS = {"\n": "\u21b5", "\t": "\u21e5", "\r": "\u240d"}
_CLOSING = set(".,;:!?)]}%\u2019\u201d")
_OPENING = set("([{\u2018\u201c")


class Piece(NamedTuple):
    """One token as text.

    Attributes:
        begins: whether a word begins here (a space, or the start of a text, comes before).
        text: what it looks like, never empty, no invisible characters.
    """

    begins: bool
    text: str


def style_of(tokens: Iterable[str]) -> Style:
    """Return how a vocabulary marks where words begin, judged by a sample of its tokens."""
    sample = list(tokens)
    styles: dict[str, Style] = {"\u0120": "bytes", "\u2581": "sentencepiece", " ": "spaced"}
    marks = Counter(token[:1] for token in sample if token[:1] in styles)
    # A stray mark occurs in any vocabulary; where it means a space, many tokens have it.
    if not marks or (mark := marks.most_common(1)[0])[1] * 20 < len(sample):
        return "wordpiece"
    style = styles[mark[0]]
    return "loose" if style == "spaced" and ")" not in sample and " )" in sample else style


def visible(text: str) -> str:
    """Return `text` with every character that cannot be seen written out.

    Line ends and tabs become signs; other control, format and separator characters (among them
    those that turn the direction of a line) become their escape.
    """
    if text and not text.strip(" "):
        return "\u2423" * len(text)
    return "".join(_visible_character(character) for character in text)


def _visible_character(character: str) -> str:
    if character in _SYMBOLS:
        return _SYMBOLS[character]
    hidden = unicodedata.category(character) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    if hidden and character not in _JOINERS:
        return character.encode("unicode_escape").decode("ascii")
    return character


def _from_bytes(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:  # a part of a character
        return "".join(f"\\x{byte:02x}" for byte in data)


def piece(token: str, style: Style) -> Piece:
    """Return one token as text, e.g. ``##ing`` as ``(False, 'ing')``."""
    if style == "wordpiece":
        inner = token.startswith("##") and len(token) > 2
        return Piece(not inner, visible(token[2:] if inner else token) or "\u2205")
    if style == "bytes":
        known = all(character in _BYTE_OF for character in token)
        text = _from_bytes(bytes(_BYTE_OF[c] for c in token)) if known else token
    elif style == "sentencepiece":
        byte = len(token) == 6 and token.startswith("<0x") and token.endswith(">")
        text = _from_bytes(bytes.fromhex(token[3:5])) if byte else token.replace("\u2581", " ")
    else:
        text = token
    begins = text[:1].isspace()
    text = text[1:] if text.startswith(" ") and len(text) > 1 else text
    return Piece(begins, visible(text) or "\u2205")


def line(pieces: Sequence[Piece], style: Style) -> tuple[str, ...]:
    """Return the pieces as the parts of a readable line, with a space where a word begins."""
    parts: list[str] = []
    before = ""
    for begins, text in pieces:
        space = begins and bool(parts)
        if style in ("wordpiece", "loose"):  # these do not say where punctuation was glued
            space = space and text[0] not in _CLOSING and before not in _OPENING
        parts.append(" " + text if space else text)
        before = text[-1]
    return tuple(parts)


def word(pieces: Sequence[Piece | None], target: int) -> tuple[str, str, str]:
    """Return the word around `pieces[target]` as (before, the piece, after).

    Args:
        pieces: consecutive tokens, None for an unknown one.
        target: index of a known piece.
    """
    first = last = target
    while first > 0 and _joined(pieces[first - 1], pieces[first]):
        first -= 1
    while last + 1 < len(pieces) and _joined(pieces[last], pieces[last + 1]):
        last += 1
    texts = ["" if one is None else one.text for one in pieces]
    return "".join(texts[first:target]), texts[target], "".join(texts[target + 1 : last + 1])


def _joined(left: Piece | None, right: Piece | None) -> bool:
    if left is None or right is None or right.begins:
        return False
    return _wordlike(left.text[-1]) and _wordlike(right.text[0])


def _wordlike(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character).startswith("M")
