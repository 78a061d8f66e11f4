"""Greedy inference as modules: orthogonal matching pursuit and its cheaper relatives.

Legend: n rows, m atoms, d width, k codes kept per row.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.dictionary import Dictionary
from dictlearn.errors import InputError, choice, whole_number
from dictlearn.inference.driver import Solution
from dictlearn.inference.engine import ENGINES
from dictlearn.inference.interface import Inference
from dictlearn.inference.objective import duality_gap
from dictlearn.inference.pursuit import gradient_pursuit, matching_pursuit, omp
from dictlearn.prox import BatchTopK, Prox, TopK


def kept(prox: Prox) -> int:
    """Return how many codes a pursuit keeps per row.

    Raises:
        InputError: the sparsity counts no codes.
    """
    if not isinstance(prox, TopK | BatchTopK):
        raise InputError(
            f"prox={type(prox).__name__.lower()} does not say how many atoms a pursuit may choose "
            "per vector: choose prox=topk or prox=batch_topk, and set prox.k."
        )
    return prox.k


class Pursuit(Inference):
    """Codes with at most `prox.k` atoms per row, chosen one after the other.

    With `batch_topk` every row has k, too: which is k on average.

    Args:
        engine: `auto`, `torch` or `compiled` (numba, on a CPU).

    Raises:
        InputError: there is no such engine.
    """

    differentiable = False

    def __init__(self, engine: str = "auto") -> None:
        super().__init__()
        self.engine = choice("inference.engine", engine, ENGINES)

    def build(self, dictionary: Dictionary, prox: Prox) -> None:
        """Check the sparsity; see `Inference.build`."""
        kept(prox)
        prox.check(dictionary.n_atoms)

    def reset(self, dictionary: Dictionary) -> None:
        """Do nothing: there is no state."""

    def reset_atoms(self, dictionary: Dictionary, indices: Tensor) -> None:
        """Do nothing: there is no state."""

    def forward(
        self,
        x: Tensor,
        atoms: Tensor,
        prox: Prox,
        initial: Codes | None = None,
        certify: bool = False,
    ) -> Solution:
        """Return k-sparse codes; see `Inference.forward`.

        The gap, if it is wanted, says how far they are from l1 codes with the same support; see
        `duality_gap`.
        """
        codes = self.coded(x, atoms, prox, initial)
        gap = x.new_full((len(x),), torch.inf)
        if certify:
            gap = duality_gap(x, codes, atoms, prox)
        return Solution(codes, gap, codes.values.shape[1], gap <= 0)

    def coded(self, x: Tensor, atoms: Tensor, prox: Prox, initial: Codes | None) -> Codes:
        """Return codes as sparse as `prox` says, for `x: [n, d]` and `atoms: [m, d]`."""
        return self.pursue(x, atoms, kept(prox), initial)

    @abstractmethod
    def pursue(self, x: Tensor, atoms: Tensor, k: int, initial: Codes | None) -> Codes:
        """Return at most `k` codes a row, for `x: [n, d]` and `atoms: [m, d]`."""


class OrthogonalMatchingPursuit(Pursuit):
    """Non-negative orthogonal matching pursuit; see `omp`.

    Args:
        atoms_per_step: added before the codes are fitted anew; more are faster, a little worse.
        engine: `auto`, `torch` or `compiled` (numba, on a CPU).

    Raises:
        InputError: an option is out of its range.
    """

    def __init__(self, atoms_per_step: int = 1, engine: str = "auto") -> None:
        super().__init__(engine)
        self.atoms_per_step = whole_number("inference.atoms_per_step", atoms_per_step)

    def pursue(self, x: Tensor, atoms: Tensor, k: int, initial: Codes | None) -> Codes:
        """Start from the support of `initial`, if given; see `Pursuit.pursue`."""
        return omp(
            x,
            atoms,
            k,
            engine=self.engine,
            atoms_per_step=self.atoms_per_step,
            initial=initial,
        )


class MatchingPursuit(Pursuit):
    """Non-negative matching pursuit, the cheapest; see `matching_pursuit`."""

    def pursue(self, x: Tensor, atoms: Tensor, k: int, initial: Codes | None) -> Codes:
        """Start from zero codes, whatever `initial` is; see `Pursuit.pursue`."""
        return matching_pursuit(x, atoms, k, engine=self.engine)


class GradientPursuit(Pursuit):
    """Non-negative gradient pursuit; see `gradient_pursuit`."""

    def pursue(self, x: Tensor, atoms: Tensor, k: int, initial: Codes | None) -> Codes:
        """Start from zero codes, whatever `initial` is; see `Pursuit.pursue`."""
        return gradient_pursuit(x, atoms, k, engine=self.engine)
