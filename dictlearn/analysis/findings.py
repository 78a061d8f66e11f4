"""What the analysis hands to a page: plain values, no arrays, nothing but the standard library."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Word:
    """A word in which a factor fires on one piece, and how often that happens.

    Attributes:
        before: the pieces of the word before the one that fires; usually empty.
        piece: the piece (token) that fires.
        after: the pieces after it.
        count: how many of the strongest codes fall on it.
    """

    before: str
    piece: str
    after: str
    count: int


@dataclass(frozen=True)
class Context:
    """One place in the text where a factor is active.

    Attributes:
        code: the factor's code at the target token.
        document: the name of the document.
        position: the index of the target token in its document.
        tokens: the window as text, a leading space where a word begins.
        target: which of `tokens` was measured.
        codes: the factor's code at every token of the window, same layer; 0 where it is silent or
            where the token is not part of the validation stream.
    """

    code: float
    document: str
    position: int
    tokens: tuple[str, ...]
    target: int
    codes: tuple[float, ...]


@dataclass(frozen=True)
class LayerView:
    """A factor at one layer.

    Attributes:
        layer: index of the hidden state; 0 is the embedding output.
        importance: mean of the largest codes at this layer.
        firing: share of this layer's hidden states with a positive code.
        words: the words of the strongest codes, most frequent first.
        contexts: the strongest contexts, strongest first.
    """

    layer: int
    importance: float
    firing: float
    words: tuple[Word, ...]
    contexts: tuple[Context, ...]


@dataclass(frozen=True)
class Factor:
    """One atom of the dictionary as a reader sees it.

    Attributes:
        atom: row of the dictionary.
        peak: layer of the largest importance; None when the factor fires nowhere.
        spread: over how many layers its importance is spread, 1 (one layer) to L (flat); 0 when
            it fires nowhere.
        documents: number of documents among the strongest codes at the peak.
        layers: what it does at every layer, lowest first.
    """

    atom: int
    peak: int | None
    spread: float
    documents: int
    layers: tuple[LayerView, ...]
