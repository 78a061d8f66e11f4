"""Exact inference inside training: a solver, its stopping rule, and a warm step size.

Legend: n rows, m atoms, d width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.dictionary import Dictionary
from dictlearn.errors import whole_number
from dictlearn.inference.driver import Solution, check_convex, check_tolerance, infer
from dictlearn.inference.interface import Inference
from dictlearn.inference.solvers import Fista, Solver
from dictlearn.inference.spectrum import exact_largest_eigenvalue, largest_eigenvalue
from dictlearn.prox import Prox


class Iterative(Inference):
    """A solver run until every row's relative duality gap is small.

    Args:
        solver: `Ista()`, `Fista()` or `GreedyFista()`.
        tolerance: largest allowed relative duality gap, below 1e-5 in float64; 0 takes exactly
            `max_steps` steps.
        max_steps: bound on the steps.
        check_every: steps between two looks at the gap.

    Raises:
        InputError: a number is out of its range.
    """

    differentiable = False
    direction: Tensor

    @property
    def needs_price(self) -> bool:
        """True."""
        return True

    def __init__(
        self,
        solver: Solver,
        tolerance: float = 1e-4,
        max_steps: int = 500,
        check_every: int = 10,
    ) -> None:
        super().__init__()
        self.solver = solver
        self.tolerance = check_tolerance(tolerance)
        self.max_steps = whole_number("inference.max_steps", max_steps)
        self.check_every = whole_number("inference.check_every", check_every)

    def build(self, dictionary: Dictionary, prox: Prox) -> None:
        """Make room for the leading eigenvector; see `Inference.build`."""
        check_convex(prox)
        prox.check(dictionary.n_atoms)
        self.register_buffer("direction", torch.zeros_like(dictionary.atoms[0].detach()))

    def check_shards(self) -> None:
        """Accept: every sum over atoms may be one over processes."""

    def reset(self, dictionary: Dictionary) -> None:
        """Forget the leading eigenvector."""
        self.direction.zero_()

    def reset_atoms(self, dictionary: Dictionary, indices: Tensor) -> None:
        """Do nothing: no parameter belongs to an atom, and the eigenvector follows by itself."""

    @torch.no_grad()
    def forward(
        self,
        x: Tensor,
        atoms: Tensor,
        prox: Prox,
        initial: Codes | None = None,
        certify: bool = True,
    ) -> Solution:
        """Return certified codes; see `Inference.forward`.

        The eigenvector is kept only in training, so that evaluation changes no state.
        """
        curvature, direction = largest_eigenvalue(atoms, self.direction, self.shards)
        if self.training:
            self.direction.copy_(direction)
        return infer(
            x,
            atoms,
            prox,
            self.solver,
            tolerance=self.tolerance,
            max_steps=self.max_steps,
            initial=initial,
            step_size=1 / curvature,
            check_every=self.check_every,
            shards=self.shards,
        )


class FistaSeed(Inference):
    """The released code of Yun et al. 2021, step for step: `sparsify_PyTorch.FISTA`.

    A fixed number of steps from zero codes with `eta = 1 / lambda_max` exactly; no restart, no
    stopping rule, no warm start.

    Args:
        max_steps: steps taken; 500 in their training and inference, 1000 in their LIME.

    Raises:
        InputError: `max_steps` is not a positive whole number.
    """

    differentiable = False

    @property
    def needs_price(self) -> bool:
        """True."""
        return True

    def __init__(self, max_steps: int = 500) -> None:
        super().__init__()
        self.max_steps = whole_number("inference.max_steps", max_steps)

    def build(self, dictionary: Dictionary, prox: Prox) -> None:
        """Check the sparsity; see `Inference.build`."""
        check_convex(prox)
        prox.check(dictionary.n_atoms)

    def check_shards(self) -> None:
        """Accept: every sum over atoms may be one over processes."""

    def reset(self, dictionary: Dictionary) -> None:
        """Do nothing: there is no state."""

    def reset_atoms(self, dictionary: Dictionary, indices: Tensor) -> None:
        """Do nothing: there is no state."""

    @torch.no_grad()
    def forward(
        self,
        x: Tensor,
        atoms: Tensor,
        prox: Prox,
        initial: Codes | None = None,
        certify: bool = True,
    ) -> Solution:
        """Return the codes after `max_steps` steps; `initial` is not used."""
        return infer(
            x,
            atoms,
            prox,
            Fista(restart=False),
            tolerance=0.0,
            max_steps=self.max_steps,
            step_size=1 / exact_largest_eigenvalue(atoms, self.shards),
            shards=self.shards,
        )
