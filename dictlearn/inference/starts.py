"""Where unrolled layers start: step sizes, momentum, and the analysis matrix of ALISTA.

Legend: m atoms, d width, c an atom.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from dictlearn.errors import InputError, choice, number
from dictlearn.inference.spectrum import exact_largest_eigenvalue
from dictlearn.mesh import ALONE, Processes
from dictlearn.prox import BatchTopK, Jump, Prox, TopK

TYPICAL_L0 = 32
"""Codes per row that first steps are fitted to where the sparsity names no number."""


def checked_step(given: str | float) -> str | float:
    """Return `inference.initial_step` if it is allowed.

    Raises:
        InputError: it is not.
    """
    if isinstance(given, str):
        return choice("inference.initial_step", given, ("auto", "lipschitz"))
    if number("inference.initial_step", given, minimum=0.0) == 0:
        raise InputError("inference.initial_step=0 would never move: give a positive number.")
    return given


def first_step(
    given: str | float, n_layers: int, prox: Prox | None, atoms: Tensor, weight: Tensor | None
) -> float:
    """Return the step size that all layers start with.

    Args:
        given: `auto`, `lipschitz` or a number; see `Unrolled`.
        n_layers: T.
        prox: the sparsity.
        atoms: `[m, d]`.
        weight: the analytic matrix `[m, d]`, or None for the atoms.
    """
    if not isinstance(given, str):
        return float(given)
    k = _kept(prox, len(atoms))
    if given == "auto" and k is not None:
        step = 1.0 if n_layers == 1 else 0.7
        best = fitting_step(atoms, atoms if weight is None else weight, k)
        # Beyond twice the best step the first layer would raise the error: atoms that are
        # hidden states point alike, and 32 of them at 0.7 overshoot ten times.
        return step if step <= 2 * best else best
    return stable_step(atoms, weight)


def _kept(prox: Prox | None, n_atoms: int) -> int | None:
    """Return about how many codes a row keeps, if the sparsity counts them."""
    if isinstance(prox, TopK | BatchTopK):
        return prox.k
    if isinstance(prox, Jump):
        return max(1, min(round(prox.target_l0 or TYPICAL_L0), n_atoms))
    return None


def fista_momentum() -> Iterator[float]:
    """Yield `(t - 1) / t'` after every step of FISTA (Beck & Teboulle 2009, eqs. 4.2-4.3)."""
    t = 1.0
    while True:
        following = (1 + math.sqrt(1 + 4 * t * t)) / 2
        yield (t - 1) / following
        t = following


@torch.no_grad()
def fitting_step(atoms: Tensor, weight: Tensor, k: int) -> float:
    """Return the step of one layer of `k` codes that reconstructs the atoms themselves best."""
    x = atoms[:512]
    decoded = TopK(k)(x @ weight.T, 0.0).dense() @ atoms
    return float((x * decoded).sum() / decoded.square().sum())


@torch.no_grad()
def stable_step(atoms: Tensor, weight: Tensor | None) -> float:
    """Return 1 / largest eigenvalue of `W^T Phi`, with the atoms as W if None."""
    if weight is None:
        return 1 / float(exact_largest_eigenvalue(atoms))
    # Similar to a symmetric matrix where W is analytic, so that the eigenvalues are real.
    return 1 / float(torch.linalg.eigvals((weight.T @ atoms).double()).real.amax())


@torch.no_grad()
def analytic_weight(atoms: Tensor, shards: Processes = ALONE) -> Tensor:
    """Return the analysis matrix `W: [m, d]` that is least coherent with the atoms.

        minimise sum over c, j of (w_c . phi_j)^2   subject to   w_c . phi_c = 1

    as in ALISTA (Liu, Chen, Wang & Yin 2019, eq. 16), solved in closed form:
    `w_c = S^+ phi_c / (phi_c . S^+ phi_c)` with `S = Phi^T Phi: [d, d]`.

    Args:
        atoms: `[m, d]`.
        shards: the processes that hold the atoms together; `atoms` are those of this one.
    """
    wide = atoms.double()
    directions = wide @ torch.linalg.pinv(shards.total(wide.T @ wide), hermitian=True)
    leverage = (directions * wide).sum(1, keepdim=True)
    least = torch.finfo(atoms.dtype).tiny
    weight: Tensor = (directions / leverage.clamp_min(least)).to(atoms.dtype)
    return weight


class AnalyticWeight:
    """The analytic matrix of the atoms as they are, computed again only when they changed."""

    def __init__(self) -> None:
        self._known: tuple[Tensor, int, Tensor] | None = None

    def __call__(self, atoms: Tensor, shards: Processes = ALONE) -> Tensor:
        """Return `W: [m, d]`, a constant."""
        atoms = atoms.detach()
        if atoms.is_inference():  # keeps no count of its changes
            return analytic_weight(atoms, shards)
        if self._known is not None:
            # Kept alive, so that no other tensor can take its place in memory.
            known, version, weight = self._known
            same = known.data_ptr() == atoms.data_ptr() and known.shape == atoms.shape
            if same and known.dtype == atoms.dtype and version == atoms._version:
                return weight
        weight = analytic_weight(atoms, shards)
        self._known = (atoms, atoms._version, weight)
        return weight

    def __deepcopy__(self, memo: object) -> AnalyticWeight:
        return AnalyticWeight()

    def __reduce__(self) -> tuple[type[AnalyticWeight], tuple[()]]:
        return AnalyticWeight, ()
