"""Online dictionary learning: the published algorithm at blocks of one, descent at any block."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.dictionary import Dictionary
from dictlearn.update import Mairal
from dictlearn.update.mairal import Statistics, block_pass, statistics

M, D = 12, 5


def batch(seed: int, n: int = 30) -> tuple[Tensor, Tensor]:
    """Rows and dense codes of which two thirds are zero; the last atom is never active."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, D, generator=g, dtype=torch.float64)
    a = torch.rand(n, M, generator=g, dtype=torch.float64)
    a[torch.rand(n, M, generator=g) < 0.66] = 0
    a[:, -1] = 0
    return x, a


def unit_atoms() -> Tensor:
    g = torch.Generator().manual_seed(99)
    return torch.nn.functional.normalize(torch.randn(M, D, generator=g, dtype=torch.float64))


def error(atoms: Tensor, known: Statistics) -> Tensor:
    return 0.5 * (known.gram * (atoms @ atoms.T)).sum() - (known.moment * atoms).sum()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
def test_statistics_are_the_sums_of_outer_products(weighted: bool, sparse: bool) -> None:
    x, a = batch(0)
    w = torch.rand(len(x), dtype=torch.float64) if weighted else torch.ones(len(x)).double()
    codes = Codes.from_dense(a)
    if sparse:
        values, indices = a.topk(9, dim=1)
        a = torch.zeros_like(a).scatter(1, indices, values)
        codes = Codes(values, indices, M)
    found = statistics(x, codes, w if weighted else None)
    gram = sum(w[i] * torch.outer(a[i], a[i]) for i in range(len(x))) / len(x)
    moment = sum(w[i] * torch.outer(a[i], x[i]) for i in range(len(x))) / len(x)
    torch.testing.assert_close(found.gram, gram)
    torch.testing.assert_close(found.moment, moment)


def test_statistics_of_codes_that_are_all_zero_are_zero() -> None:
    x, a = batch(0, n=1)
    found = statistics(x, Codes.from_dense(torch.zeros_like(a)))
    assert not found.gram.any()
    assert not found.moment.any()
    assert torch.equal(block_pass(unit_atoms(), found, 4), unit_atoms())


def test_a_pass_of_single_atoms_is_algorithm_2() -> None:
    known = statistics(batch(0)[0], Codes.from_dense(batch(0)[1]))
    expected = unit_atoms()
    for j in range(M - 1):  # the last atom is never active, and stays
        u = (known.moment[j] - known.gram[j] @ expected) / known.gram[j, j] + expected[j]
        expected[j] = u / u.norm()
    torch.testing.assert_close(block_pass(unit_atoms(), known, 1), expected)


@pytest.mark.parametrize("block", [1, 3, 5, 12, 100])
def test_no_pass_raises_the_error_whatever_the_block(block: int) -> None:
    known = statistics(batch(1)[0], Codes.from_dense(batch(1)[1]))
    atoms = unit_atoms()
    errors = [error(atoms, known)]
    for _ in range(200):
        atoms = block_pass(atoms, known, block)
        errors.append(error(atoms, known))
    assert all(after <= before + 1e-12 for before, after in pairwise(errors))
    assert errors[-1] < errors[0] - 0.1
    torch.testing.assert_close(block_pass(atoms, known, 1), atoms, rtol=0, atol=1e-3)
    torch.testing.assert_close(atoms.norm(dim=1), torch.ones(M).double())


def test_no_pass_raises_the_error_where_codes_of_both_signs_cancel() -> None:
    g = torch.Generator().manual_seed(0)
    twin = torch.randn(50, 1, generator=g, dtype=torch.float64)
    a = torch.cat([twin, -0.9 * twin, torch.randn(50, 6, generator=g, dtype=torch.float64)], dim=1)
    x = torch.randn(50, D, generator=g, dtype=torch.float64)
    known, atoms = statistics(x, Codes.from_dense(a)), unit_atoms()[:8]
    before = first = error(atoms, known)
    for _ in range(50):
        atoms = block_pass(atoms, known, 8)
        assert error(atoms, known) <= before + 1e-12
        before = error(atoms, known)
    assert before < first - 0.1


def test_twins_that_are_always_active_together_do_not_overshoot() -> None:
    g = torch.Generator().manual_seed(0)
    a = torch.rand(50, 1, generator=g, dtype=torch.float64).expand(-1, 8).contiguous()
    x = torch.randn(50, D, generator=g, dtype=torch.float64)
    known, atoms = statistics(x, Codes.from_dense(a)), unit_atoms()[:8]
    before = error(atoms, known)
    for _ in range(20):
        atoms = block_pass(atoms, known, 8)
        assert error(atoms, known) <= before + 1e-12
        before = error(atoms, known)


def test_the_window_forgets_and_the_first_steps_count_alike() -> None:
    dictionary = Dictionary(M, D).double()
    optimizer = Mairal(window=4).build([dictionary.atoms], [])
    gram = torch.zeros(M, M, dtype=torch.float64)
    for step in range(7):
        x, a = batch(step)
        share = 1 / min(step + 1, 4)
        gram = (1 - share) * gram + share * a.T @ a / len(x)
        optimizer.observe_codes(x, Codes.from_dense(a))
        optimizer.step()
        torch.testing.assert_close(optimizer.state[dictionary.atoms]["gram"], gram)


def test_the_rate_is_the_share_of_the_way() -> None:
    results = []
    for lr in (1.0, 0.25):
        dictionary = Dictionary(M, D).double()
        with torch.no_grad():
            dictionary.atoms.copy_(unit_atoms())
        optimizer = Mairal(lr=lr, block=5).build([dictionary.atoms], [])
        x, a = batch(0)
        optimizer.observe_codes(x, Codes.from_dense(a))
        optimizer.step()
        results.append(dictionary.atoms.detach())
    between = torch.nn.functional.normalize(0.75 * unit_atoms() + 0.25 * results[0])
    torch.testing.assert_close(results[1], between)


def test_codes_of_accumulated_batches_count_alike() -> None:
    grams = []
    for parts in ((batch(0), batch(1)), (tuple(map(torch.cat, zip(batch(0), batch(1)))),)):  # noqa: B905
        dictionary = Dictionary(M, D).double()
        optimizer = Mairal().build([dictionary.atoms], [])
        for x, a in parts:
            optimizer.observe_codes(x, Codes.from_dense(a))
        optimizer.step()
        grams.append(optimizer.state[dictionary.atoms]["gram"])
    torch.testing.assert_close(*grams)


def test_a_step_without_codes_is_refused() -> None:
    optimizer = Mairal().build([Dictionary(2, 4).atoms], [])
    with pytest.raises(RuntimeError, match="observe_codes"):
        optimizer.step()


def test_merged_atoms_are_as_if_they_had_been_one_all_the_time() -> None:
    states = []
    for merged_before in (True, False):
        x, a = batch(3)
        if merged_before:
            a[:, 2] += a[:, 7] + a[:, 9]
            a[:, [7, 9]] = 0
        dictionary = Dictionary(M, D).double()
        optimizer = Mairal().build([dictionary.atoms], [])
        optimizer.merge_atoms(torch.tensor([2]), torch.tensor([7]))  # nothing to merge yet
        optimizer.observe_codes(x, Codes.from_dense(a))
        optimizer.step()
        if not merged_before:
            optimizer.merge_atoms(torch.tensor([2, 2]), torch.tensor([7, 9]))
            optimizer.reset_atoms(torch.tensor([7, 9]))
        states.append(optimizer.state[dictionary.atoms])
    for name in ("gram", "moment"):
        torch.testing.assert_close(states[0][name], states[1][name])


def _process(rank: int, folder: str) -> None:
    """One of two processes that see half of the rows each."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    atoms = trained([slice(rank, None, 2)])
    torch.save(atoms, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def trained(parts: list[slice]) -> Tensor:
    dictionary = Dictionary(M, D).double()
    optimizer = Mairal(window=3).build([dictionary.atoms], [])
    for step in range(6):
        x, a = batch(step)
        for part in parts:
            optimizer.observe_codes(x[part], Codes.from_dense(a[part]))
        optimizer.step()
    return dictionary.atoms.detach()


def test_two_processes_learn_what_one_learns_from_all_rows(tmp_path: Path) -> None:
    alone = trained([slice(None)])
    torch.multiprocessing.start_processes(  # type: ignore[attr-defined, no-untyped-call]
        _process, (str(tmp_path),), nprocs=2, start_method="fork"
    )
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert torch.equal(first, second)
    torch.testing.assert_close(first, alone)
