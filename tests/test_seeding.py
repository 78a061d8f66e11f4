"""Draws depend on the whole key and on nothing else."""

import os
import subprocess
import sys

import pytest
import torch

from dictlearn.seeding import generator, key_to_seed

KEY = (7, "rows", 3, 12)


def draws(*key: object) -> torch.Tensor:
    return torch.randint(2**40, (4,), generator=generator(*key))  # type: ignore[arg-type]


def test_the_same_key_gives_the_same_draws() -> None:
    torch.manual_seed(1)
    first = draws(*KEY)
    torch.manual_seed(2)
    assert torch.equal(first, draws(*KEY))


@pytest.mark.parametrize(
    "other",
    [
        (8, "rows", 3, 12),
        (7, "row", 3, 12),
        (7, "rows", 4, 12),
        (7, "rows", 3, 13),
        (7, "rows", 12, 3),
        (7, "rows", 3),
        (7, "rows", 3, 12, 0),
        (7, "rows", 31, 2),
        (7, "rows", "3", 12),
        (7, "rows", (3, 12)),
    ],
)
def test_a_difference_in_any_part_gives_other_draws(other: tuple[int, object]) -> None:
    assert not torch.equal(draws(*KEY), draws(*other))


def test_a_thousand_keys_give_a_thousand_seeds_that_fit_a_generator() -> None:
    seeds = {key_to_seed(seed, "x", step) for seed in range(10) for step in range(100)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**56 for seed in seeds)


def test_draws_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    draws(*KEY)
    assert torch.equal(before, torch.get_rng_state())


def test_another_process_derives_the_same_seed() -> None:
    code = "from dictlearn.seeding import key_to_seed; print(key_to_seed(7, 'rows', 3, 12))"
    environment = {**os.environ, "PYTHONHASHSEED": "11"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == key_to_seed(*KEY)


def test_the_seed_of_a_key_stays_what_it_is_so_that_old_runs_can_be_repeated() -> None:
    assert key_to_seed(*KEY) == 46_490_879_401_538_804
