from __future__ import annotations

import numpy as np
import pytest

from dictlearn.hidden_states.permutation import Permutation


@pytest.mark.parametrize("n", [*range(1, 70), 127, 128, 129, 1000, 4095, 4096, 4097, 65537])
def test_every_number_is_there_once(n: int) -> None:
    found = Permutation(n, 3, "cached", 1)(np.arange(n))
    assert sorted(found.tolist()) == list(range(n))


def test_it_depends_on_seed_and_key_and_on_nothing_else() -> None:
    index = np.arange(1000)
    one = Permutation(1000, 0, "cached", 0)(index)
    assert np.array_equal(one, Permutation(1000, 0, "cached", 0)(index))
    assert np.array_equal(one[700:800], Permutation(1000, 0, "cached", 0)(index[700:800]))
    for other in (Permutation(1000, 1, "cached", 0), Permutation(1000, 0, "cached", 1)):
        assert (one == other(index)).mean() < 0.01


@pytest.mark.parametrize("n", [5000, 2**16, 100_003])
def test_the_order_looks_random(n: int) -> None:
    found = Permutation(n, 7, "cached", 0)(np.arange(n))
    sigma = 0.5 / np.sqrt(n / 2)
    for part in (found[: n // 2], found[::2], found[n // 4 : n // 4 + n // 2]):
        assert abs((part < n // 2).mean() - 0.5) < 5 * sigma
        assert abs((part % 2 == 0).mean() - 0.5) < 5 * sigma
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 5 / np.sqrt(n)
    assert abs(np.corrcoef(np.arange(n), found)[0, 1]) < 5 / np.sqrt(n)
    assert abs((np.diff(found) > 0).mean() - 0.5) < 5 * sigma
    # neighbours of 64 numbers are spread evenly: chi-square of 64 cells, 63 +- 11
    cells = np.bincount(found[: n // 8] * 64 // n, minlength=64)
    expected = n // 8 / 64
    assert ((cells - expected) ** 2 / expected).sum() < 63 + 5 * 11.3


def test_a_thousand_million_rows_cost_what_a_thousand_do() -> None:
    order = Permutation(10**12, 0, "cached", 0)
    found = order(np.arange(10**12 - 1000, 10**12))
    assert len(set(found.tolist())) == 1000
    assert found.min() >= 0
    assert found.max() < 10**12
    assert found.std() > 10**11
