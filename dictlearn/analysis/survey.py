"""Chosen factors, looked at layer by layer: table and text in, plain findings out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dictlearn.analysis import pieces
from dictlearn.analysis.code_table import CodeTable
from dictlearn.analysis.contexts import shading, strongest
from dictlearn.analysis.findings import Context, Factor, LayerView, Word
from dictlearn.analysis.importance import Importance, Variety

REACH = 3
"""Tokens to each side within which a word is put together from its pieces."""

FAINT = 0.1
"""Share of the peak below which one context of a layer is enough."""


class Text(Protocol):
    """The text that the rows of a table come from."""

    def context(
        self, document: int, position: int, before: int, after: int
    ) -> tuple[Sequence[int], int]:
        """Return the token ids around a place and the index of the place among them."""
        ...

    def decode_tokens(self, ids: Sequence[int]) -> list[str]:
        """Return every token as the vocabulary writes it."""
        ...


@dataclass(frozen=True)
class Survey:
    """How much to show of a factor.

    Attributes:
        contexts: contexts at the layer where the factor peaks.
        contexts_elsewhere: contexts at every other layer; one where the factor is faint (less than
            a tenth of its peak).
        window: tokens to each side of the target.
        word_codes: how many of the strongest codes the words are counted over.
        words: words shown at a layer.
    """

    contexts: int = 5
    contexts_elsewhere: int = 2
    window: int = 10
    word_codes: int = 50
    words: int = 8


class Surveyor:
    """Looks at factors of one table.

    Args:
        table: the codes of a text.
        seen: their importance.
        varied: their variety.
        text: where the rows of the table come from.
        survey: how much to show.
        documents: names of the documents; the number is shown where there is none.
    """

    def __init__(
        self,
        table: CodeTable,
        seen: Importance,
        varied: Variety,
        text: Text,
        survey: Survey,
        documents: Sequence[str] = (),
    ) -> None:
        self.table = table
        self.seen = seen
        self.varied = varied
        self.text = text
        self.survey = survey
        self.documents = documents
        vocabulary = np.unique(table.token).tolist()
        tokens = text.decode_tokens(vocabulary)
        self.style = pieces.style_of(tokens)
        self._pieces: dict[int, pieces.Piece] = {}
        self._learn(vocabulary, tokens)

    def _learn(self, ids: Sequence[int], tokens: Sequence[str]) -> None:
        found = (pieces.piece(token, self.style) for token in tokens)
        self._pieces.update(zip(ids, found, strict=True))

    def _read(self, ids: Sequence[int]) -> list[pieces.Piece]:
        new = sorted({token for token in ids if token not in self._pieces})
        if new:  # a token next to the validation stream but not in it
            self._learn(new, self.text.decode_tokens(new))
        return [self._pieces[token] for token in ids]

    def factors(self, atoms: Iterable[int]) -> tuple[Factor, ...]:
        """Return what the chosen atoms do."""
        return tuple(self.factor(int(atom)) for atom in atoms)

    def factor(self, atom: int) -> Factor:
        """Return what one atom does at every layer."""
        peak = int(self.seen.peak[atom])
        names = self.table.layers.tolist()
        return Factor(
            atom=atom,
            peak=None if peak < 0 else names[peak],
            spread=float(self.seen.spread[atom]),
            documents=int(self.varied.documents[atom]),
            layers=tuple(self._view(atom, layer, layer == peak) for layer in range(len(names))),
        )

    def _view(self, atom: int, layer: int, is_peak: bool) -> LayerView:
        survey, score = self.survey, self.seen.score[atom]
        is_faint = score[layer] < FAINT * score.max()
        elsewhere = min(1, survey.contexts_elsewhere) if is_faint else survey.contexts_elsewhere
        return LayerView(
            layer=int(self.table.layers[layer]),
            importance=float(score[layer]),
            firing=float(self.seen.firing[atom, layer]),
            words=self._words(atom, layer),
            contexts=self._contexts(atom, layer, survey.contexts if is_peak else elsewhere),
        )

    def _words(self, atom: int, layer: int) -> tuple[Word, ...]:
        span = self.table.span(atom, layer)
        rows = self.table.row[span][: self.survey.word_codes]
        if len(rows) == 0:
            return ()
        windows = self.table.window_tokens(rows, REACH).tolist()
        found = Counter(
            pieces.word([self._pieces.get(token) for token in window], REACH) for window in windows
        )
        # most_common keeps the order of first appearance, here the strongest, among equal counts
        return tuple(Word(*parts, count) for parts, count in found.most_common(self.survey.words))

    def _contexts(self, atom: int, layer: int, count: int) -> tuple[Context, ...]:
        rows, codes = strongest(self.table, atom, layer, count)
        reach = self.survey.window
        shades = shading(self.table, atom, layer, rows, np.arange(-reach, reach + 1))
        return tuple(
            self._context(int(row), float(code), shade.tolist())
            for row, code, shade in zip(rows, codes, shades, strict=True)
        )

    def _context(self, row: int, code: float, shade: list[float]) -> Context:
        document, position = int(self.table.document[row]), int(self.table.position[row])
        reach = self.survey.window
        ids, target = self.text.context(document, position, reach, reach)
        read = self._read([int(token) for token in ids])
        start = reach - target
        named = document < len(self.documents)
        return Context(
            code=code,
            document=pieces.visible(self.documents[document]) if named else f"#{document}",
            position=position,
            tokens=pieces.line(read, self.style),
            target=target,
            codes=tuple(shade[start : start + len(read)]),
        )
