"""Atoms of an exchange are looked for on a list, where there are many; it must not miss any."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dictlearn.inference import exchange_pursuit
from tests.inference.problems import problem

numba = pytest.importorskip("numba")


@pytest.mark.parametrize(("k", "price"), [(12, 0.0), (24, 0.0), (40, 0.005)])
def test_a_list_finds_codes_as_good_as_all_atoms_do(k: int, price: float) -> None:
    given = problem(n=300, d=64, m=700, dtype=torch.float32)

    def objective(engine: str) -> torch.Tensor:
        codes = exchange_pursuit(*given, k, price=price, start="zero", engine=engine)
        error = (given.x - codes.dense() @ given.atoms).square().sum(1)
        return error + price * codes.l0()

    plain, listed = objective("torch"), objective("compiled")
    assert listed.sum() < 1.005 * plain.sum()
    assert (listed < 1.001 * plain).float().mean() > 0.9


@pytest.mark.parametrize("kind", ["spread", "equal", "few"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nothing_left_out_exceeds_what_is_said(kind: str, dtype: type) -> None:
    from dictlearn.inference.compiled.growth import list_largest

    c: NDArray[Any] = np.random.default_rng(0).standard_normal(3000).astype(dtype)
    if kind == "equal":
        c[:] = 0.5
    if kind == "few":
        c[50:] = -1.0
    listed = np.empty(200, np.int64)
    n, threshold = list_largest(c, 1e-3, listed)
    assert len(set(listed[:n].tolist())) == n
    assert (c[listed[:n]] > 1e-3).all()
    rest = np.delete(c, listed[:n])
    if kind != "equal":  # of equal ones any do
        assert rest.max() <= max(threshold, 1e-3)
    assert n == {"spread": n, "equal": 200, "few": (c > 1e-3).sum()}[kind]
    if kind == "spread":
        assert 100 <= n <= 200


def test_with_room_for_all_those_of_no_use_yet_are_listed_too() -> None:
    from dictlearn.inference.compiled.growth import list_largest
    from dictlearn.inference.compiled.pursuit import NEVER

    c = np.array([0.5, -0.3, NEVER, 0.0, 0.2])
    listed = np.empty(8, np.int64)
    n, _ = list_largest(c, 1e-3, listed)
    assert sorted(listed[:n].tolist()) == [0, 1, 3, 4]
