"""Two processes with half a batch each learn what one learns from the whole batch.

All state and all figures are compared after 16 steps with gradient clipping, revival, merging,
weighted rows and two validations; everything that depends on the batch must have come from all of
it. The order of sums is the only difference left, and all is in float64, so that it stays small:

- parameters, optimizer, idle counters, prices, cuts, training and held-out figures: 1e-7;
- the amortisation gap, whose solver stops at a relative duality gap of 1e-4: 1e-4;
- in float32: 1e-3, and 2 % for state, in which a rounded choice may tip.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.parallel_run import CASES, FLOAT32, STEPS, WHOLE_TEXT, Job, Together, train
from tests.small_run import BATCH

Ended = Callable[[str], list[dict[str, Tensor]]]

SLOW = {  # what they add to the others is in no room that reads the whole batch
    "adam, topk",
    "adam, topk with a drawn k",
    "adam, jump at a price",
    "adam, steered soft",
    "adam, gated",
    "adam, pursuit encoder",
    "adam, matryoshka",
    "adam, auxk",
    "hessian_diagonal, fista",
    "mairal, batch_topk",
    "two_phase, soft, distilled codes",
}
marked = [pytest.param(case, marks=[pytest.mark.slow] * (case in SLOW)) for case in CASES]


@pytest.fixture(scope="module")
def ended(
    request: pytest.FixtureRequest,
    minilm_folder: Path,
    text_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Ended]:
    """What one process ended with, and each of two, which train all cases meanwhile."""
    job = Job(minilm_folder, text_folder, tmp_path_factory.mktemp("parallel"))
    job.data(1, 1).prepare_data()
    given = [getattr(item, "callspec", None) for item in request.session.items]
    named = {str(one.params["case"]) for one in given if one and "case" in one.params}
    pair = Together(job, [case for case in (*CASES, FLOAT32, WHOLE_TEXT) if case in named])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in each of the two
    try:
        yield lambda case: [train(job, case, 1), *pair.results(case)]
    finally:
        pair.end()
        torch.set_num_threads(threads)


def far(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, in units of the largest number that is expected."""
    if torch.equal(found, expected):  # prices that are not known yet are infinite
        return 0.0
    return float((found - expected).abs().max() / expected.abs().max())


def check_equal(alone: dict[str, Tensor], others: list[dict[str, Tensor]]) -> None:
    """Compare all that one process ended with to what each of several did."""
    for name, expected in alone.items():
        allowed = 1e-4 if name == "val/amortisation_gap" else 1e-7
        assert all(torch.equal(one[name], others[0][name]) for one in others), name
        assert far(others[0][name], expected) <= allowed, name
    assert all(set(one) == set(alone) for one in others)


@pytest.mark.parametrize("case", marked)
def test_two_processes_learn_what_one_learns(case: str, ended: Ended) -> None:
    alone, *pair = ended(case)
    assert alone["vectors_seen"] == STEPS * BATCH
    assert {"train/fvu", "val/fvu", "val/l0_layer_3", "idle", "revived"} < set(alone)
    check_equal(alone, pair)
    if case in ("adam, jump with a target", "adam, steered power"):
        assert alone["revived"] > alone["merged"] > 0


@pytest.mark.slow
def test_so_do_four(
    minilm_folder: Path, text_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    job = Job(minilm_folder, text_folder, tmp_path_factory.mktemp("four"))
    job.data(1, 1).prepare_data()
    cases = ["two_phase, batch_topk", "adam, jump with a target", "adam, auxk and matryoshka"]
    four = Together(job, cases, 4)
    try:
        for case in cases:
            check_equal(train(job, case, 1), four.results(case))
    finally:
        four.end()


@pytest.mark.parametrize("case", [FLOAT32])
def test_two_processes_learn_what_one_learns_in_float32(case: str, ended: Ended) -> None:
    alone, first, second = ended(case)
    for name, expected in alone.items():
        assert torch.equal(first[name], second[name]), name
        allowed = 1e-3 if name.startswith(("val/", "train/")) else 0.02
        assert far(first[name], expected) <= allowed, name


@pytest.mark.parametrize("case", [WHOLE_TEXT])
def test_two_processes_see_every_vector_that_one_sees_and_none_twice(
    case: str, ended: Ended
) -> None:
    alone, *pair = ended(case)
    n_steps, n_rows, _ = alone["origins"].shape
    assert n_steps * n_rows > 2.2 * int(alone["vectors"])
    assert torch.equal(torch.cat([one["origins"] for one in pair], dim=1), alone["origins"])
    times = Counter(map(tuple, alone["origins"].flatten(0, 1).tolist()))
    assert len(times) == int(alone["vectors"])
    assert set(times.values()) <= {1, 2, 3}
    # In the first round of the text no two processes have a vector in common.
    steps = int(0.9 * int(alone["vectors"])) // n_rows
    left, right = (set(map(tuple, one["origins"][:steps].flatten(0, 1).tolist())) for one in pair)
    assert len(left) == len(right) == steps * n_rows // 2
    assert not left & right
