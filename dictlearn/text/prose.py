"""From a docstring to paragraphs of English prose.

Heuristics, tuned by reading what came out: code, doctests, tables, directives, headings and bare
parameter lists go; sentences stay, without their markup.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

PROSE_VERSION = 1  # counted up whenever the rules change: part of the fingerprint

_MIN_WORDS = 8
_MIN_ALPHABETIC = 0.75  # share of words that are letters only
_MIN_FUNCTION_WORDS = 0.18
_MAX_SYMBOLS = 0.02  # share of characters that are =<>{}[]|\ and the like
_FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an the this that these those it its of to in on at by for from with without into over "
        "between and or but not if then than when while where which who whose what how as so such "
        "is are was were be been being has have had do does can could may might must shall should "
        "will would you your we our they their he she one any all each no only also more most",
    )
)
_SYMBOLS = re.compile(r"[=<>{}\[\]|\\$_^#@~]")
_UNDERLINE = re.compile(r"([-=~^*#+`'\".:_])\1{2,}")
_TABLE = re.compile(r"[|+][-=+|\s]|.*\s\|\s.*\|$|(=+\s+){1,}=+$")
_DIRECTIVE = re.compile(r"\.\.(\s+[\w:-]+::\s*(?P<rest>.*)|\s.*|$)")
_SPOKEN = re.compile(
    r"\.\.\s+(note|warning|tip|important|caution|attention|hint|danger|seealso|admonition)::"
)
_BULLET = re.compile(r"([-*+•]|\(?\d{1,2}[.)]|\(?[a-z]\))\s+")
_FIELD = re.compile(r":[a-z]+[^:`]*:(\s+|$)")  # :param x: , :return:
_NAMED = re.compile(  # "name (type): " and "name -- " and "name : " before a description
    r"\*{0,2}[`'\"]?\w[\w.*]*[`'\"]?(\s*\([^()]*(\([^()]*\))?[^()]*\))?(\s*:|\s+--)\s+"
)
_NUMPY_NAMED = re.compile(r"\S+(\s*,\s*\S+)*\s+:\s")  # "name : type", its description hangs below
_INLINE = (
    (re.compile(r"</?(?:Tip|Added|Changed|Deprecated|br|p|a|b|i|em|div|img|code)\b[^<>]*>"), " "),
    (re.compile(r":[\w:+.-]+:`~(?:[\w.]*\.)?([^`<]+)`"), r"\1"),  # :class:`~a.b.C` -> C
    (re.compile(r":[\w:+.-]+:`([^`<]+?)\s*(<[^`>]*>)?`"), r"\1"),  # :ref:`text <target>` -> text
    (re.compile(r"\[`?([^\]`]+)`?\]\([^)\s]*\)"), r"\1"),  # [text](address) -> text
    (re.compile(r"\s?(?:\[\d{1,2}\]_?|\[[\w.+*#-]+\]_)(?!\w)"), ""),  # [1]_ of a reference
    (re.compile(r"`([^`<]+?)\s*<[^`>]*>`_{0,2}"), r"\1"),  # `text <address>`_ -> text
    (re.compile(r"`{1,2}~?([^`]+)`{1,2}_{0,2}"), r"\1"),  # ``code`` -> code
    (re.compile(r"(?<!\w)(\*{1,2})(\S(?:[^*]*\S)?)\1(?!\w)"), r"\2"),  # *emphasis* -> emphasis
    (re.compile(r"\s+"), " "),
)


def is_prose(text: str) -> bool:
    """Tell whether a paragraph reads like English sentences rather than code, a list or a table."""
    words = text.split()
    if len(words) < _MIN_WORDS or text.count("\\") > 1:
        return False
    bare = [word.strip(".,;:!?()\"'") for word in words]
    alphabetic = sum(word.replace("-", "").replace("'", "").isalpha() for word in bare)
    function_words = sum(word.lower() in _FUNCTION_WORDS for word in bare)
    return (
        alphabetic >= _MIN_ALPHABETIC * len(words)
        and function_words >= _MIN_FUNCTION_WORDS * len(words)
        and len(_SYMBOLS.findall(text)) <= _MAX_SYMBOLS * len(text)
    )


def _spoken(lines: list[str]) -> str:
    """Join the lines of a paragraph and strip what is markup, not speech."""
    text = " ".join(lines)
    if text.count(" ") < _MIN_WORDS - 1:
        return ""
    for opening in (_BULLET, _FIELD, _NAMED):
        text = opening.sub("", text, count=1) if opening.match(text) else text
    for pattern, replacement in _INLINE:
        text = pattern.sub(replacement, text)
    return text.strip()


class _Blocks:
    """Cuts the lines of a docstring into raw paragraphs; knows which blocks are not prose.

    Attributes:
        lines: of the paragraph so far, stripped.
        indents: columns that each of them is indented by.
        skip: indentation below which a literal block hangs, None outside of one.
        fenced: whether a block between fences is open.
        doctest: whether a doctest is open: until the next empty line.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.indents: list[int] = []
        self.skip: int | None = None
        self.fenced = False
        self.doctest = False

    def close(self) -> Iterator[list[str]]:
        """Yield the paragraph so far, if there is one, and begin another."""
        lines, indents = self.lines, self.indents
        self.lines, self.indents = [], []
        if not lines:
            return
        if lines[-1].endswith("::"):
            self.skip = indents[-1]
            lines[-1] = lines[-1][:-1]
        yield lines

    def feed(self, line: str) -> Iterator[list[str]]:
        """Take the next line, indented as it stands; yield the paragraph that it ends, if any."""
        text = line.strip()
        indent = len(line) - len(line.lstrip())
        if text.startswith(("```", "~~~")):
            self.fenced = not self.fenced
            yield from self.close()
        elif not text:
            self.doctest = False
            yield from self.close()
        elif not self._is_skipped(text, indent):
            yield from self._keep(text, indent)

    def _is_skipped(self, text: str, indent: int) -> bool:
        """Tell whether a line belongs to a literal block, to what is fenced or to a doctest."""
        if self.skip is not None and indent <= self.skip:
            self.skip = None
        if text.startswith((">>>", "In [")):
            self.doctest = True
        return self.fenced or self.doctest or self.skip is not None

    def _keep(self, text: str, indent: int) -> Iterator[list[str]]:
        """Take a line into the paragraph, or end that, as headings, tables and the like do."""
        if text.startswith(".."):
            yield from self._directive(text, indent)
            return
        if _UNDERLINE.fullmatch(text):
            if len(self.lines) == 1:  # a heading stands on its underline
                self.lines, self.indents = [], []
            yield from self.close()
            return
        if _TABLE.match(text):
            yield from self.close()
            return
        if self._begins(text, indent):
            yield from self.close()
            if self.skip is not None and indent > self.skip:
                return
            self.skip = None
        self.lines.append(text)
        self.indents.append(indent)

    def _directive(self, text: str, indent: int) -> Iterator[list[str]]:
        """Skip what hangs below a directive, unless that is speech, as of a note or a warning."""
        yield from self.close()
        match = _DIRECTIVE.match(text)
        if match is None:  # "..." that goes on with prose
            return
        if _SPOKEN.match(text):
            rest = match.group("rest")
            if rest:
                self.lines, self.indents = [rest], [indent + 3]
        else:
            self.skip = indent

    def _begins(self, text: str, indent: int) -> bool:
        """Tell whether this line opens a new paragraph although no blank line stands before."""
        if not self.lines:
            return False
        if indent == self.indents[-1]:
            listed = _NAMED.match(self.lines[0]) and indent == self.indents[0]
            item = _BULLET.match(text) or _FIELD.match(text) or (listed and _NAMED.match(text))
            return item is not None
        if len(self.lines) > 1 or indent < self.indents[-1] or _NUMPY_NAMED.match(self.lines[0]):
            return True
        hanging = (pattern.match(self.lines[0]) for pattern in (_BULLET, _NAMED, _FIELD))
        return not any(hanging)


def paragraphs(docstring: str) -> Iterator[str]:
    """Yield the paragraphs of English prose of one docstring, in its order, white space normal."""
    blocks = _Blocks()
    for line in [*inspect.cleandoc(docstring).splitlines(), ""]:
        for lines in blocks.feed(line):
            text = _spoken(lines)
            if text and is_prose(text):
                yield text
