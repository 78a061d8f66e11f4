from __future__ import annotations

import numpy as np
import pytest

from dictlearn.analysis.code_table import Observed, code_table
from dictlearn.analysis.importance import Importance, Variety, best_by_peak, importance, variety
from tests.analysis.planted import LAYERS, N_ATOMS, SILENT, observed, planted


@pytest.mark.parametrize("top", [1, 5, 60, 10_000])
def test_importance_is_the_mean_of_the_largest_codes(top: int) -> None:
    case = planted()
    seen = importance(case.table, top)
    for atom in range(N_ATOMS):
        for place, layer in enumerate(LAYERS):
            codes = np.sort(case.dense[case.rows(layer), atom].astype(np.float64))[::-1]
            assert seen.score[atom, place] == pytest.approx(codes[:top].mean(), rel=1e-6)
            assert seen.firing[atom, place] == pytest.approx((codes > 0).mean())


def test_the_peak_is_the_layer_of_the_largest_score_and_silence_has_none() -> None:
    seen = importance(planted().table, 10)
    assert seen.peak[SILENT] == -1
    assert seen.spread[SILENT] == 0
    alive = np.arange(N_ATOMS) != SILENT
    np.testing.assert_array_equal(seen.peak[alive], seen.score[alive].argmax(1))


def test_spread_is_one_for_a_single_layer_and_their_number_for_a_flat_curve() -> None:
    dense = np.zeros((3, 2), np.float32)
    dense[1, 0] = 2.0
    dense[:, 1] = 0.7
    seen = observed([0, 2, 5], [0, 0, 0], [0, 0, 0], [1, 1, 1], dense)
    found = importance(code_table(seen, 2, LAYERS), 1)
    np.testing.assert_allclose(found.spread, [1.0, 3.0])


def test_documents_and_windows_are_counted_among_the_strongest_codes() -> None:
    case = planted()
    found = importance(case.table, 10)
    counted = variety(case.table, found.peak, 12)
    for atom in range(N_ATOMS):
        if atom == SILENT:
            assert counted.documents[atom] == counted.windows[atom] == 0
            assert counted.lead[atom] == -1
            continue
        rows = case.table.row[case.table.span(atom, int(found.peak[atom]))][:12]
        windows = {tuple(window) for window in case.table.window_tokens(rows, 2)}
        assert counted.windows[atom] == len(windows)
        assert counted.documents[atom] == len(set(case.table.document[rows]))
        assert counted.lead[atom] == case.table.token[rows[0]]


def _best(
    score: list[float], windows: list[int], lead: list[int], firing: float = 0.01
) -> list[int]:
    m = len(score)
    seen = Importance(
        np.array(score)[:, None], np.full((m, 1), firing), np.zeros(m, np.int64), np.ones(m)
    )
    varied = Variety(np.full(m, 9), np.array(windows), np.array(lead))
    return [int(atom) for atom in best_by_peak(seen, varied, 10)[0]]


def test_the_most_important_factor_comes_first() -> None:
    assert _best([1.0, 3.0, 2.0], [9, 9, 9], [1, 2, 3]) == [1, 2, 0]


def test_a_factor_of_one_repeated_string_comes_after_the_others() -> None:
    assert _best([1.0, 3.0, 2.0], [9, 1, 9], [1, 2, 3]) == [2, 0, 1]


def test_a_second_factor_of_the_same_token_comes_later() -> None:
    assert _best([1.0, 3.0, 2.0], [9, 9, 9], [1, 2, 2]) == [1, 0, 2]


def test_every_atom_that_fires_is_listed_at_its_peak_only() -> None:
    case = planted()
    found = importance(case.table, 10)
    best = best_by_peak(found, variety(case.table, found.peak, 10), N_ATOMS)
    listed = sorted(int(atom) for atoms in best for atom in atoms)
    assert listed == [atom for atom in range(N_ATOMS) if atom != SILENT]
    for place, atoms in enumerate(best):
        assert (found.peak[atoms] == place).all()
    assert all(
        len(atoms) <= 2 for atoms in best_by_peak(found, variety(case.table, found.peak, 9), 2)
    )


def test_nothing_at_all_is_handled() -> None:
    table = code_table(Observed.join([]), N_ATOMS, LAYERS)
    found = importance(table, 5)
    assert (found.peak == -1).all()
    best = best_by_peak(found, variety(table, found.peak, 5), 3)
    assert [len(atoms) for atoms in best] == [0, 0, 0]
