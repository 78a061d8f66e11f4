from __future__ import annotations

import pytest

from dictlearn.analysis.pieces import Piece, Style, line, piece, style_of, visible, word


def _line(tokens: list[str], style: Style) -> str:
    return "".join(line([piece(token, style) for token in tokens], style))


def _byte_level(text: str) -> str:
    """Write the bytes of `text` as a byte-level vocabulary does (the table of GPT-2)."""
    visible_bytes = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible_bytes]
    table = {byte: chr(byte) for byte in visible_bytes}
    table |= {byte: chr(256 + place) for place, byte in enumerate(hidden)}
    return "".join(table[byte] for byte in text.encode())


def test_word_pieces_are_put_together() -> None:
    tokens = ["he", "was", "run", "##ning", "(", "fast", ")", ",", "c", "##a", "##fé", "!"]
    assert _line(tokens, "wordpiece") == "he was running (fast), cafe!".replace("cafe", "café")


def test_byte_pieces_are_read_as_text() -> None:
    tokens = [_byte_level(part) for part in ("The", " na", "ïve", " caf", "é", ",", " 🙂", "\n")]
    assert style_of(tokens) == "bytes"
    assert _line(tokens, "bytes") == "The naïve café, 🙂 ↵"


def test_a_part_of_a_character_is_written_as_bytes() -> None:
    emoji = _byte_level("🙂")
    assert piece(emoji[:2], "bytes") == Piece(False, "\\xf0\\x9f")


def test_sentencepiece_marks_and_bytes_are_read() -> None:
    tokens = ["▁The", "▁wa", "ter", ".", "<0x0A>"]
    assert style_of(tokens) == "sentencepiece"
    assert _line(tokens, "sentencepiece") == "The water. ↵"


def test_tokens_that_are_text_already_stay_text() -> None:
    tokens = ["The", " water", " is", " run", "ning", "."]
    assert style_of(tokens) == "spaced"
    assert _line(tokens, "spaced") == "The water is running."


def test_signs_that_always_have_a_space_are_put_where_they_belong() -> None:
    tokens = [" he", " run", "s", " (", " really", " )", ".", " fast", " [", " x", " ]"]
    assert style_of(tokens) == "loose"
    assert _line(tokens, "loose") == "he runs (really). fast [x]"
    assert style_of([*tokens, ")"]) == "spaced"


def test_a_stray_mark_does_not_change_the_style() -> None:
    tokens = ["Ġ", "##ing", *(f"word{i}" for i in range(60))]
    assert style_of(tokens) == "wordpiece"
    assert style_of([]) == "wordpiece"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\n", "↵"),
        ("\t", "⇥"),
        ("\u2028", "\\u2028"),
        ("\u202e", "\\u202e"),
        ("\x00", "\\x00"),
        ("\ud800", "\\ud800"),
        ("  ", "␣␣"),
        ("👩\u200d🚀", "👩\u200d🚀"),
        ("שלום", "שלום"),
    ],
)
def test_what_cannot_be_seen_is_written_out(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_no_token_is_shown_as_nothing() -> None:
    styles: list[Style] = ["wordpiece", "bytes", "sentencepiece", "spaced", "loose"]
    for style in styles:
        for token in ("", "##", "Ġ", "▁", " ", "\n", "<0x", "Ċ"):
            assert piece(token, style).text


def test_a_word_is_found_around_its_piece() -> None:
    tokens = ["the", "un", "##believ", "##able", ",", "story"]
    found = [piece(token, "wordpiece") for token in tokens]
    assert word(found, 2) == ("un", "believ", "able")
    assert word(found, 0) == ("", "the", "")
    assert word(found, 4) == ("", ",", "")
    assert word([None, piece("##ing", "wordpiece"), None], 1) == ("", "ing", "")


def test_punctuation_does_not_belong_to_a_byte_level_word() -> None:
    found = [piece(_byte_level(part), "bytes") for part in (" run", "ning", ",", " he")]
    assert word(found, 1) == ("run", "ning", "")
    assert word(found, 2) == ("", ",", "")
