"""Sparse-coding problems for the tests: rows that are sparse in known atoms, with noise."""

from typing import NamedTuple

import torch
from torch import Tensor

from dictlearn.dictionary import Dictionary


class Problem(NamedTuple):
    x: Tensor
    atoms: Tensor


def problem(
    n: int = 24, d: int = 16, m: int = 48, dtype: torch.dtype = torch.float64, seed: int = 0
) -> Problem:
    g = torch.Generator().manual_seed(seed)
    # A common direction makes atoms coherent, as those of hidden states are.
    atoms = torch.randn(m, d, generator=g, dtype=torch.float64) + 0.5
    atoms /= atoms.norm(dim=1, keepdim=True)
    codes = torch.rand(n, m, generator=g, dtype=torch.float64)
    codes *= torch.rand(n, m, generator=g, dtype=torch.float64) < 4 / m
    x = codes @ atoms + 0.05 * torch.randn(n, d, generator=g, dtype=torch.float64)
    return Problem(x.to(dtype), atoms.to(dtype))


def dictionary_of(atoms: Tensor) -> Dictionary:
    dictionary = Dictionary(atoms.shape[0], atoms.shape[1], initialization="gaussian").to(
        atoms.dtype
    )
    with torch.no_grad():
        dictionary.atoms.copy_(atoms)
    return dictionary
