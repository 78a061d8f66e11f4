"""The gated autoencoder: one path decides which atoms fire, another how strongly.

Legend: n rows, m atoms, d width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dictlearn.codes import Codes
from dictlearn.dictionary import Dictionary
from dictlearn.errors import InputError
from dictlearn.inference.driver import Solution
from dictlearn.inference.interface import Inference
from dictlearn.inference.objective import duality_gap
from dictlearn.kernels import reconstruct, threshold_layer
from dictlearn.prox import Prox, Relu


class Gated(Inference):
    """Rajamanoharan et al. 2024, "Improving dictionary learning with gated sparse autoencoders".

    The two paths share the directions `W: [m, d]` (their eqs. 5 to 7):

        gate      = x W^T + b_gate
        a         = [gate > 0] * relu(exp(r_mag) * x W^T + b_mag)

    The price is put on the gates, not on the codes, so that codes are not shrunk, and the gates
    learn from a reconstruction of their own, through a frozen copy of the atoms (eq. 8). With
    `p = relu(gate)` the encoder adds to the objective, which prices the codes,

        penalty(p) - penalty(a) + 1/2 |x - p Phi_frozen|^2.
    """

    differentiable = True

    def build(self, dictionary: Dictionary, prox: Prox) -> None:
        """Create both paths; see `Inference.build`."""
        if not prox.convex or isinstance(prox, Relu):
            raise InputError(
                "inference=gated puts a price on its gates, and "
                f"prox={type(prox).__name__.lower()} has none: choose prox=soft."
            )
        atoms = dictionary.atoms.detach()
        self.analysis = nn.Parameter(atoms.clone())
        self.log_magnitude = nn.Parameter(atoms.new_zeros(len(atoms)))
        self.gate_bias = nn.Parameter(atoms.new_zeros(len(atoms)))
        self.magnitude_bias = nn.Parameter(atoms.new_zeros(len(atoms)))

    def reset(self, dictionary: Dictionary) -> None:
        """Start with the atoms as directions and equal paths, as published."""
        self.reset_atoms(dictionary, torch.arange(dictionary.n_atoms))

    @torch.no_grad()
    def reset_atoms(self, dictionary: Dictionary, indices: Tensor) -> None:
        """Start some atoms anew."""
        self.analysis[indices] = dictionary.atoms[indices]
        for entries in (self.log_magnitude, self.gate_bias, self.magnitude_bias):
            entries[indices] = 0.0

    def scores(self, x: Tensor, atoms: Tensor, indices: Tensor | None = None) -> Tensor:
        """Return the gates before their rectification, `[n, j]`.

        Args:
            x: `[n, d]`.
            atoms: not used; the encoder has its own directions.
            indices: of the atoms wanted, `[j]`; all if None.
        """
        if indices is None:
            return torch.addmm(self.gate_bias, x, self.analysis.T)
        return torch.addmm(self.gate_bias[indices], x, self.analysis[indices].T)

    def forward(
        self,
        x: Tensor,
        atoms: Tensor,
        prox: Prox,
        initial: Codes | None = None,
        certify: bool = False,
    ) -> Solution:
        """Return codes that carry gradients; the one layer has no use for `initial`."""
        # Of gates that are shut nothing is needed, so that they are k-sparse where that is faster.
        open_gates = threshold_layer(x, self.analysis, -self.gate_bias.detach(), 0.0)
        is_open, bias = open_gates.values > 0, _at(self.gate_bias, open_gates)
        projected = open_gates.values - bias.detach()
        scale = _at(self.log_magnitude, open_gates).exp()
        magnitude = torch.addcmul(_at(self.magnitude_bias, open_gates), projected, scale)
        codes = open_gates._replace(values=torch.relu(magnitude) * is_open)
        gap = x.new_full((len(x),), torch.inf)
        if certify:
            gap = duality_gap(x, codes, atoms, prox)
        extra = None
        if self.training:
            gates = open_gates.values + (bias - bias.detach()) * is_open
            extra = _extra(x.detach(), open_gates._replace(values=gates), codes, atoms, prox)
        return Solution(codes, gap, 1, gap <= 0, extra)


def _extra(x: Tensor, gates: Codes, codes: Codes, atoms: Tensor, prox: Prox) -> Tensor:
    """Return what the gates add to the loss of every row, `[n]`."""
    error = x - reconstruct(gates, atoms.detach())
    moved = prox.value(gates) - prox.value(codes)
    return moved + 0.5 * error.square().sum(-1)


def _at(entries: Tensor, codes: Codes) -> Tensor:
    """Return entries `[m]` at the places of k-sparse codes, `[n, k]`, or as they are."""
    if codes.indices is None:
        return entries
    return entries.index_select(0, codes.indices.flatten()).view_as(codes.indices)
