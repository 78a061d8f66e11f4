from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from dictlearn.analysis.code_table import code_table
from dictlearn.analysis.contexts import shading, strongest
from tests.analysis.planted import LAYERS, N_ATOMS, SILENT, observed, planted


def test_contexts_are_sorted_and_start_with_the_largest_code() -> None:
    case = planted()
    for atom in range(N_ATOMS):
        rows, codes = strongest(case.table, atom, 1, 5)
        if atom == SILENT:
            assert len(rows) == 0
            continue
        assert len(rows) == 5
        assert (np.diff(codes) <= 0).all()
        assert codes[0] == case.dense[case.rows(LAYERS[1]), atom].max()
        assert (case.table.layer[rows] == 1).all()


def test_one_document_does_not_fill_the_list_while_others_fire() -> None:
    # Document 0 is ten times stronger and has all different texts; four others are weak.
    document = np.repeat(np.arange(5), 12)
    position = np.tile(np.arange(12), 5)
    dense = np.linspace(1, 2, 60, dtype=np.float32)[::-1, None].copy()
    dense[:12] *= 10
    table = code_table(observed(document * 0, document, position, np.arange(60), dense), 1, [0])
    rows, _ = strongest(table, 0, 0, 6)
    assert Counter(table.document[rows].tolist()) == {0: 2, 1: 2, 2: 2}


def test_the_same_text_is_shown_once() -> None:
    document = np.repeat(np.arange(8), 3)
    token = np.tile([5, 6, 7], 8)
    token[3 * 7 : 3 * 7 + 3] = [5, 6, 8]
    dense = np.where(np.tile([0, 1, 0], 8), np.linspace(2, 1, 24), 0).astype(np.float32)[:, None]
    table = code_table(observed(document * 0, document, np.tile(range(3), 8), token, dense), 1, [0])
    rows, codes = strongest(table, 0, 0, 5)
    assert table.document[rows].tolist() == [0, 7]
    assert codes[0] == dense.max()


def test_a_text_of_one_document_still_fills_the_list() -> None:
    dense = np.linspace(1, 2, 30, dtype=np.float32)[:, None]
    table = code_table(observed([0] * 30, [0] * 30, np.arange(30), np.arange(30), dense), 1, [0])
    rows, _ = strongest(table, 0, 0, 5)
    assert table.position[rows].tolist() == [29, 28, 27, 26, 25]


@pytest.mark.parametrize("atom", [0, 3, SILENT])
def test_shading_is_the_code_of_the_same_factor_at_every_token(atom: int) -> None:
    case = planted()
    table = case.table
    dense = {
        (int(la), int(d), int(p)): float(code)
        for la, d, p, code in zip(
            case.seen.layer,
            case.seen.document,
            case.seen.position,
            case.dense[:, atom],
            strict=True,
        )
    }
    rows = np.flatnonzero(table.layer == 2)[::7]
    shades = shading(table, atom, 2, rows, np.arange(-4, 5))
    for row, shade in zip(rows, shades, strict=True):
        document, position = int(table.document[row]), int(table.position[row])
        expected = [dense.get((LAYERS[2], document, position + o), 0.0) for o in range(-4, 5)]
        assert shade.tolist() == expected
