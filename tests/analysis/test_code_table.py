from __future__ import annotations

import numpy as np
import pytest

from dictlearn.analysis.code_table import Observed, code_table
from tests.analysis.planted import LAYERS, N_ATOMS, SILENT, observed, planted


def test_the_codes_of_an_atom_at_a_layer_are_one_slice_strongest_first() -> None:
    case = planted()
    for atom in range(N_ATOMS):
        for place, layer in enumerate(LAYERS):
            codes = case.dense[case.rows(layer), atom]
            expected = np.sort(codes[codes > 0])[::-1]
            np.testing.assert_array_equal(case.table.value[case.table.span(atom, place)], expected)


def test_every_code_keeps_its_row() -> None:
    case = planted()
    where = {
        (int(la), int(d), int(p)): row
        for row, (la, d, p) in enumerate(
            zip(case.seen.layer, case.seen.document, case.seen.position, strict=True)
        )
    }
    table = case.table
    for atom in range(N_ATOMS):
        for place, layer in enumerate(LAYERS):
            span = table.span(atom, place)
            for row, value in zip(table.row[span], table.value[span], strict=True):
                key = (layer, int(table.document[row]), int(table.position[row]))
                assert case.dense[where[key], atom] == value


@pytest.mark.parametrize("digits", [7, 1])
def test_the_table_does_not_depend_on_the_order_of_the_rows(digits: int) -> None:
    case = planted()
    dense = case.dense.round(digits)  # with one digit many codes are equal
    order = np.random.default_rng(1).permutation(len(dense))
    s = case.seen
    table, again = (
        code_table(
            observed(s.layer[o], s.document[o], s.position[o], s.token[o], dense[o]),
            N_ATOMS,
            LAYERS,
        )
        for o in (np.arange(len(dense)), order)
    )
    for name in ("row", "value", "starts", "key", "token", "layer"):
        np.testing.assert_array_equal(getattr(again, name), getattr(table, name))
    rows = [table.row[table.span(a, i)] for a in range(N_ATOMS) for i in range(len(LAYERS))]
    values = [table.value[table.span(a, i)] for a in range(N_ATOMS) for i in range(len(LAYERS))]
    equal = [np.diff(r)[np.diff(v) == 0] for r, v in zip(rows, values, strict=True)]
    assert all((steps > 0).all() for steps in equal)
    assert (sum(map(len, equal)) > 100) == (digits == 1)


def test_a_row_that_came_twice_counts_once() -> None:
    case = planted()
    twice = code_table(Observed.join([case.seen, case.seen]), N_ATOMS, LAYERS)
    np.testing.assert_array_equal(twice.value, case.table.value)
    np.testing.assert_array_equal(twice.rows_per_layer, case.table.rows_per_layer)


def test_batches_joined_are_the_whole() -> None:
    case = planted()
    s, half = case.seen, len(case.dense) // 3
    parts = [
        observed(s.layer[c], s.document[c], s.position[c], s.token[c], case.dense[c])
        for c in (slice(0, half), slice(half, half), slice(half, None))
    ]
    again = code_table(Observed.join(parts), N_ATOMS, LAYERS)
    np.testing.assert_array_equal(again.row, case.table.row)
    np.testing.assert_array_equal(again.value, case.table.value)


def test_neighbours_stay_in_their_document_and_layer() -> None:
    table = planted(documents=4, length=5).table
    rows = np.arange(len(table.key))
    near = table.neighbours(rows, np.arange(-7, 8))
    for row in rows:
        for offset, found in zip(range(-7, 8), near[row], strict=True):
            inside = 0 <= table.position[row] + offset < 5
            assert (found >= 0) == inside
            if inside:
                assert table.document[found] == table.document[row]
                assert table.layer[found] == table.layer[row]
                assert table.position[found] == table.position[row] + offset


def test_a_token_outside_the_stream_is_unknown() -> None:
    seen = observed([0, 0], [3, 3], [4, 6], [50, 60], np.ones((2, 1), np.float32))
    table = code_table(seen, 1, [0])
    assert table.window_tokens(np.array([0]), 2).tolist() == [[-1, -1, 50, -1, 60]]


def test_equal_windows_have_equal_hashes_and_others_not() -> None:
    table = planted(documents=40, length=10).table
    rows = np.arange(len(table.key))
    windows = [tuple(window) for window in table.window_tokens(rows, 2)]
    assert len(set(windows)) == len(set(table.window_hash(rows).tolist()))
    assert len(set(zip(windows, table.window_hash(rows).tolist(), strict=True))) == len(
        set(windows)
    )


def test_rows_without_a_place_in_the_text_are_left_out() -> None:
    dense = np.array([[1.0], [2.0], [3.0]], np.float32)
    table = code_table(observed([0, 0, 0], [0, 0, 1], [-1, 0, -1], [9, 8, 9], dense), 1, [0])
    assert table.value.tolist() == [2.0]
    assert table.token.tolist() == [8]


@pytest.mark.parametrize("parts", [[], [Observed.join([])]])
def test_an_empty_text_has_an_empty_table(parts: list[Observed]) -> None:
    table = code_table(Observed.join(parts), N_ATOMS, LAYERS)
    assert table.rows_per_layer.tolist() == [0, 0, 0]
    assert len(table.value) == 0
    assert table.span(SILENT, 1) == slice(0, 0)
