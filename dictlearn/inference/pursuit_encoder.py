"""Matching pursuit as an encoder that learns: the gradient goes through every step.

Legend: n rows, m atoms, d width, k steps, r = residual, z = what a step takes off.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.inference.driver import Solution
from dictlearn.inference.objective import duality_gap
from dictlearn.inference.pursuit import matching_sequence, merged
from dictlearn.inference.pursuit_form import combine
from dictlearn.inference.pursuit_inference import Pursuit
from dictlearn.prox import Prox


class PursuitEncoder(Pursuit):
    """`prox.k` steps of matching pursuit, tied to the dictionary, that carry gradients.

    Costa et al. 2025, "From flat to hierarchical: extracting sparse representations with
    matching pursuit": with `r_0 = x`, and `j_t` the atom that correlates most with `r_(t-1)`,

        z_t = relu(<phi_(j_t), r_(t-1)>),   r_t = r_(t-1) - z_t phi_(j_t),   a = sum_t z_t e_(j_t).

    The choice of `j_t` carries no gradient; `z_t` does, to `x` and to all atoms chosen up to `t`.

    Args:
        engine: of the search for atoms: `auto`, `torch` or `compiled` (numba, on a CPU).

    Raises:
        InputError: there is no such engine.
    """

    differentiable = True

    def forward(
        self,
        x: Tensor,
        atoms: Tensor,
        prox: Prox,
        initial: Codes | None = None,
        certify: bool = False,
    ) -> Solution:
        """Return codes that carry gradients; see `Inference.forward`."""
        solution = super().forward(x, atoms, prox, initial)
        if not certify:
            return solution
        gap = duality_gap(x, solution.codes, atoms, prox)
        return solution._replace(gap=gap, converged=gap <= 0)

    def pursue(self, x: Tensor, atoms: Tensor, k: int, initial: Codes | None) -> Codes:
        """Start from zero codes, whatever `initial` is; see `Pursuit.pursue`."""
        values, indices = Steps.apply(x, atoms, k, self.engine)  # type: ignore[no-untyped-call]
        return merged(values, indices, len(atoms))


class Steps(torch.autograd.Function):
    """The steps of matching pursuit; only the `n k` chosen atoms and values are kept.

    Backward walks the steps back: the residual before a step is the one after it plus what the
    step took off, so that no residual is stored. With `g` the gradient of `r_t` and `h_t` that
    of `z_t` (the given one less `<g, phi>`; 0 where nothing was taken off),

        gradient of phi_(j_t) += h_t r_(t-1) - z_t g,      gradient of r_(t-1) = g + h_t phi.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, atoms: Tensor, k: int, engine: str) -> tuple[Tensor, Tensor]:
        """Return what every step takes off and its atom, `[n, k]`."""
        values, indices = matching_sequence(x, atoms, k, engine)
        ctx.mark_non_differentiable(indices)
        ctx.save_for_backward(x, atoms, values, indices)
        return values, indices

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, Tensor | None, None, None]:
        """Return the gradients of `x: [n, d]` and of the atoms `[m, d]`."""
        x, atoms, values, indices = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            table = atoms.to(values.dtype)
            residual = x.to(values.dtype) - combine(values, indices, table)
            for_residual = torch.zeros_like(residual)
            for_atoms = torch.zeros_like(table)
            for t in range(values.shape[1] - 1, -1, -1):
                atom, z = table[indices[:, t]], values[:, t, None]
                residual.addcmul_(z, atom)
                through = (for_residual * atom).sum(1, keepdim=True)
                h = torch.where(z > 0, grad[:, t, None] - through, 0.0)
                if ctx.needs_input_grad[1]:
                    for_atoms.index_add_(0, indices[:, t], h * residual - z * for_residual)
                for_residual.addcmul_(h, atom)
        return for_residual.to(x.dtype), for_atoms.to(atoms.dtype), None, None
