"""From lines (or rows of a table) to documents: articles of WikiText, or sections."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import islice

SECTION_CHARACTERS = 2000  # a section is closed at the first paragraph end from here on ...
LONG_SECTION_CHARACTERS = 8000  # ... or at a line end from here on: text without blank lines
HEADING_LINES = 10_000  # how far `has_articles` looks
# " = Title = " of WikiText; editors strip the outer blanks. " = = Section = = " is no title.
_TITLE = re.compile(r"\s?= (?!=).*(?<!=) =\s*")


def is_title(line: str) -> bool:
    """Tell whether a line is a level-1 heading of WikiText (`` = Title = ``)."""
    return _TITLE.fullmatch(line) is not None


def has_articles(lines: Iterable[str]) -> bool:
    """Tell whether at least two level-1 headings stand within the first 10,000 lines."""
    titles = (line for line in islice(lines, HEADING_LINES) if is_title(line))
    return len(list(islice(titles, 2))) == 2


def articles(lines: Iterable[str]) -> Iterator[str]:
    """Re-join lines into articles: each begins at a level-1 heading and keeps it.

    Lines before the first heading are an article of their own.
    """
    article: list[str] = []
    for line in lines:
        if is_title(line) and article:
            yield "\n".join(article)
            article = []
        article.append(line)
    if article:
        yield "\n".join(article)


def sections(lines: Iterable[str]) -> Iterator[str]:
    """Re-join lines into runs of whole paragraphs of at least 2,000 characters.

    A rest shorter than that joins the section before it. Paragraphs end at blank lines; text that
    has none is cut at a line end.
    """
    held = ""  # the section before, kept back until we know that no short rest follows it
    run: list[str] = []
    size = 0
    for line in lines:
        run.append(line)
        size += len(line) + 1
        blank = not line.strip()
        if size >= (SECTION_CHARACTERS if blank else LONG_SECTION_CHARACTERS):
            if held:
                yield held
            held, run, size = "\n".join(run), [], 0
    if held and size < SECTION_CHARACTERS:
        yield "\n".join([held, *run])
        return
    yield from (text for text in (held, "\n".join(run)) if text)


def row_sections(rows: Iterable[str]) -> Iterator[str]:
    """`sections` of a table, where every row is a paragraph."""
    return sections(line for row in rows for line in (row, ""))
