"""Double atoms are found as by brute force, and only as many go as are double."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dictlearn.callbacks import duplicates
from dictlearn.callbacks.duplicates import Twins, find_twins, merge_directions, usage_rank


def clustered(m: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Unit rows around a third as many centres, so that many pairs are alike."""
    g = torch.Generator().manual_seed(m)
    centres = torch.randn(max(1, m // 3), 6, generator=g, dtype=torch.float64)
    rows = centres[torch.randint(len(centres), (m,), generator=g)]
    rows = rows + 0.25 * torch.randn(m, 6, generator=g, dtype=torch.float64)
    return torch.nn.functional.normalize(rows, dim=1).to(dtype)


def by_hand(atoms: Tensor, usage: Tensor, cosine: float) -> list[tuple[int, int]]:
    """Pairs (kept, gone), from the definition."""
    partner: dict[int, int] = {}
    for j in range(len(atoms)):
        above = [i for i in range(len(atoms)) if (usage[i], -i) > (usage[j], -j)]
        near = {i: float(atoms[i] @ atoms[j]) for i in above}
        if near and max(near.values()) > cosine:
            partner[j] = max(near, key=lambda i: near[i])
    return sorted((i, j) for j, i in partner.items() if i not in partner)


@pytest.mark.parametrize("block", [1, 7, 512])
@pytest.mark.parametrize("m", [1, 2, 40])
def test_twins_are_those_of_the_definition(
    m: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "BLOCK", block)
    atoms = clustered(m, torch.float64)
    usage = torch.randint(0, 5, (m,), generator=torch.Generator().manual_seed(1))
    found = find_twins(atoms, usage, 0.9)
    pairs = sorted(zip(found.kept.tolist(), found.gone.tolist(), strict=True))
    assert pairs == by_hand(atoms, usage, 0.9)
    assert m < 40 or len(pairs) > 5
    assert len(set(found.gone.tolist())) == len(pairs)
    assert not set(found.gone.tolist()) & set(found.kept.tolist())


def test_of_equal_atoms_the_most_used_one_stays() -> None:
    atoms = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    found = find_twins(atoms, torch.tensor([1, 3, 9, 2]), 0.95)
    assert sorted(found.gone.tolist()) == [0, 3]
    assert found.kept.tolist() == [1, 1]


def test_opposite_atoms_are_no_twins() -> None:
    atoms = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert len(find_twins(atoms, torch.zeros(2), 0.5).gone) == 0


def test_of_a_chain_only_the_middle_goes() -> None:
    angles = torch.tensor([0.0, 0.3, 0.6])
    atoms = torch.stack([angles.cos(), angles.sin()], 1)
    found = find_twins(atoms, torch.tensor([3, 2, 1]), 0.9)
    assert (found.kept.tolist(), found.gone.tolist()) == ([0], [1])


def test_energy_decides_who_is_used_more_and_idleness_between_equals() -> None:
    energy = torch.tensor([0.0, 2.0, 0.0, 1.0, 0.0])
    idle = torch.tensor([50, 0, 900, 0, 7])
    assert usage_rank(energy, idle).tolist() == [1, 4, 0, 3, 2]


def test_a_kept_atom_moves_to_the_mean_of_all_its_twins_by_energy() -> None:
    atoms = clustered(8, torch.float64)
    energy = torch.tensor([1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 7.0, 8.0]).double()
    pairs = Twins(torch.tensor([1, 1, 5]), torch.tensor([0, 3, 4]))
    found = merge_directions(atoms, energy, pairs)
    mean = torch.nn.functional.normalize(2 * atoms[1] + atoms[0] + 4 * atoms[3], dim=0)
    torch.testing.assert_close(found, torch.stack([mean, mean, atoms[5]]))
    none = torch.empty(0, dtype=torch.int64)
    assert merge_directions(atoms, energy, Twins(none, none)).shape == (0, 6)
