"""From documents to blocks of tokens, the unit that the transformer reads."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dictlearn.errors import InputError
from dictlearn.text.store import TokenStore


class Blocks(NamedTuple):
    """Slices ``store.tokens[start : start + length]`` that hold every chosen token exactly once.

    Attributes:
        start: int64 [B], index of the first token.
        length: int64 [B], number of tokens.
        document: int64 [B], ascending: blocks with the same number are of one document, or of
            neighbours that are cut as one; no others have a token of these documents.
    """

    start: NDArray[np.int64]
    length: NDArray[np.int64]
    document: NDArray[np.int64]

    @classmethod
    def none(cls) -> Blocks:
        """Return no block at all."""
        return cls(*(np.empty(0, dtype=np.int64) for _ in cls._fields))


def pack(
    store: TokenStore, documents: NDArray[np.bool_], length: int, cross_documents: bool = False
) -> Blocks:
    """Cut the chosen documents into blocks of at most `length` tokens, in the store's order.

    The last block of a document may be shorter. With `cross_documents`, neighbours that are both
    chosen are cut as if they were one document: fewer short blocks, but a block may then hold the
    end of one document and the beginning of the next. No block ever holds a token of a document
    that is not chosen.

    Args:
        store: the tokenised text.
        documents: bool [D], the chosen documents.
        length: tokens of a full block.
        cross_documents: whether a block may run on into the next document.

    Raises:
        InputError: the chosen documents together hold less than one full block.
    """
    begin = store.offsets[:-1][documents]
    end = store.offsets[1:][documents]
    if cross_documents and len(begin):
        joined = begin[1:] == end[:-1]  # neighbours in the store touch
        begin = begin[np.concatenate([[True], ~joined])]
        end = end[np.concatenate([~joined, [True]])]
    n_tokens = int((end - begin).sum())
    if n_tokens < length:
        raise InputError(
            f"the text is shorter than one block: {n_tokens} tokens in {int(documents.sum())} "
            f"documents of {store.meta['source']}, but hidden_states.block_length={length}: give "
            "more text or a smaller block length."
        )
    n_blocks = -(-(end - begin) // length)
    run = np.repeat(np.arange(len(begin)), n_blocks)
    number = np.arange(len(run)) - np.repeat(np.cumsum(n_blocks) - n_blocks, n_blocks)
    start = begin[run] + number * length
    return Blocks(start, np.minimum(length, end[run] - start), run)
