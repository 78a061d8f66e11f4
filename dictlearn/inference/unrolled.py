"""A few proximal-gradient layers with learned sizes: LISTA, and at one layer the SAE.

Legend: n rows, m atoms, d width, k kept codes per row, T layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from dictlearn.codes import Codes
from dictlearn.dictionary import Dictionary
from dictlearn.errors import InputError, choice, flag, number, whole_number
from dictlearn.inference.driver import Solution
from dictlearn.inference.interface import Inference
from dictlearn.inference.objective import duality_gap
from dictlearn.inference.spectrum import exact_largest_eigenvalue
from dictlearn.kernels import reconstruct, topk_layer
from dictlearn.prox import Prox, TopK

Pairs = tuple[Tensor, Tensor]
"""Values and their indices, both `[n, p]`."""


class Unrolled(Inference):
    """`a <- prox(y + s_t W_t (x - y Phi) - theta_t)`, T times (Gregor & LeCun 2010).

    `y` is the last code, or with momentum `a + beta_t (a - a_before)`. Learned are a step size
    `s_t` per layer (as its logarithm, so that it stays positive), a threshold per layer and
    atom, and what `weights` and `momentum` add. One layer with `topk` or `relu` and shared
    weights is the sparse autoencoder of that name.

    Args:
        n_layers: T.
        weights: the analysis matrix `W_t: [m, d]`: `tied` is the dictionary itself, which then
            also learns from being an encoder; `shared` one learned matrix, `untied` one per
            layer, both starting at the dictionary.
        momentum: whether `beta_t` is learned, starting at FISTA's.
        initial_step: the first step size: `lipschitz` (1 / largest eigenvalue, which makes the
            untrained layers T steps of ISTA or FISTA), a number, or `auto`: for `topk` 1 with
            one layer and 0.7 with more, where 1 / largest eigenvalue would start 60 times too
            small, or less where the atoms are so much alike that it overshoots, else `lipschitz`.
            Thresholds start at step size times lambda.

    Raises:
        InputError: an option is not allowed.
    """

    differentiable = True

    def __init__(
        self,
        n_layers: int = 2,
        weights: str = "tied",
        momentum: bool = False,
        initial_step: str | float = "auto",
    ) -> None:
        super().__init__()
        self.n_layers = whole_number("inference.n_layers", n_layers)
        self.weights = choice("inference.weights", weights, ("tied", "shared", "untied"))
        self.momentum = flag("inference.momentum", momentum)
        if isinstance(initial_step, str):
            choice("inference.initial_step", initial_step, ("auto", "lipschitz"))
        elif number("inference.initial_step", initial_step, minimum=0.0) == 0:
            raise InputError("inference.initial_step=0 would never move: give a positive number.")
        self.initial_step = initial_step
        self._prox: Prox | None = None

    def build(self, dictionary: Dictionary, prox: Prox) -> None:
        """Create the layers; see `Inference.build`."""
        prox.check(dictionary.n_atoms)
        self._prox = prox
        atoms = dictionary.atoms.detach()
        n_weights = {"tied": 0, "shared": 1, "untied": self.n_layers}[self.weights]
        n_betas = self.n_layers - 1 if self.momentum else 0
        # One tensor per layer, not one stacked: what belongs to atoms has them in dimension 0.
        self.log_steps = _parameters(atoms.new_zeros(()) for _ in range(self.n_layers))
        self.thresholds = _parameters(atoms.new_zeros(len(atoms)) for _ in range(self.n_layers))
        self.analysis = _parameters(atoms.clone() for _ in range(n_weights))
        self.betas = _parameters(atoms.new_zeros(()) for _ in range(n_betas))
        self.reset(dictionary)

    @torch.no_grad()
    def reset(self, dictionary: Dictionary) -> None:
        """Give every parameter its initial value for the dictionary as it is now."""
        step = self._first_step(dictionary.atoms)
        for log_step in self.log_steps:
            log_step.fill_(math.log(step))
        for threshold in self.thresholds:
            threshold.fill_(self._first_threshold())
        for weight in self.analysis:
            weight.copy_(dictionary.atoms)
        for beta, value in zip(self.betas, _fista_momentum(), strict=False):
            beta.fill_(value)

    @torch.no_grad()
    def reset_atoms(self, dictionary: Dictionary, indices: Tensor) -> None:
        """Give some atoms their initial rows of the analysis matrices and their thresholds."""
        for weight in self.analysis:
            weight[indices] = dictionary.atoms[indices]
        for threshold in self.thresholds:
            threshold[indices] = self._first_threshold()

    def _first_step(self, atoms: Tensor) -> float:
        if not isinstance(self.initial_step, str):
            return float(self.initial_step)
        if self.initial_step == "auto" and isinstance(self._prox, TopK):
            step, best = 1.0 if self.n_layers == 1 else 0.7, _fitting_step(atoms, self._prox)
            # Beyond twice the best step the first layer would raise the error: atoms that are
            # hidden states point alike, and 32 of them at 0.7 overshoot ten times.
            return step if step <= 2 * best else best
        return 1 / float(exact_largest_eigenvalue(atoms))

    def _first_threshold(self) -> Tensor:
        if self._prox is None:
            raise RuntimeError("build(dictionary, prox) creates the layers, and comes first")
        return torch.exp(self.log_steps[0]) * self._prox.lambda_

    def forward(
        self,
        x: Tensor,
        atoms: Tensor,
        prox: Prox,
        initial: Codes | None = None,
        certify: bool = False,
    ) -> Solution:
        """Return codes that carry gradients; see `Inference.forward`."""
        if isinstance(prox, TopK):
            codes = self._sparse_layers(x, atoms, prox.k, initial)
        else:
            codes = self._dense_layers(x, atoms, prox, initial)
        gap = x.new_full((len(x),), torch.inf)
        if certify:
            gap = duality_gap(x, codes, atoms, prox)
        return Solution(codes, gap, self.n_layers, gap <= 0)

    def _weight(self, layer: int, atoms: Tensor) -> Tensor:
        if self.weights == "tied":
            return atoms
        weight: Tensor = self.analysis[layer if self.weights == "untied" else 0]
        return weight

    def _dense_layers(self, x: Tensor, atoms: Tensor, prox: Prox, initial: Codes | None) -> Codes:
        start = None if initial is None else initial.dense()
        before = start
        codes = self._dense_layer(0, x, start, atoms, prox)
        for layer in range(1, self.n_layers):
            start = codes.values
            if self.momentum:
                difference = start if before is None else start - before
                before, start = start, torch.addcmul(start, self.betas[layer - 1], difference)
            codes = self._dense_layer(layer, x, start, atoms, prox)
        return codes

    def _dense_layer(
        self, layer: int, x: Tensor, start: Tensor | None, atoms: Tensor, prox: Prox
    ) -> Codes:
        residual = x if start is None else x - start @ atoms
        change = (residual * self.log_steps[layer].exp()) @ self._weight(layer, atoms).T
        return prox(change if start is None else start + change, self.thresholds[layer])

    def _sparse_layers(self, x: Tensor, atoms: Tensor, k: int, initial: Codes | None) -> Codes:
        """Run the layers on values and indices: dense are only one layer's pre-activations.

        The residual is linear in the codes, so momentum combines residuals already at hand.
        """
        start = _as_pairs(initial)
        residual = x if initial is None else x - reconstruct(initial, atoms)
        before = (start, residual)
        codes = self._sparse_layer(0, residual, start, atoms, k)
        for layer in range(1, self.n_layers):
            start, residual = _as_pairs(codes), x - reconstruct(codes, atoms)
            if self.momentum:
                beta, here = self.betas[layer - 1], (start, residual)
                start = _extrapolated(start, before[0], beta)
                residual = residual + beta * (residual - before[1])
                before = here
            codes = self._sparse_layer(layer, residual, start, atoms, k)
        return codes

    def _sparse_layer(
        self, layer: int, residual: Tensor, start: Pairs | None, atoms: Tensor, k: int
    ) -> Codes:
        scaled = residual * self.log_steps[layer].exp()
        return topk_layer(scaled, self._weight(layer, atoms), self.thresholds[layer], k, start)


def _fitting_step(atoms: Tensor, prox: TopK) -> float:
    """Return the step of one layer that reconstructs the atoms themselves best."""
    x = atoms[:512]
    decoded = prox(x @ atoms.T, 0.0).dense() @ atoms
    return float((x * decoded).sum() / decoded.square().sum())


def _as_pairs(codes: Codes | None) -> Pairs | None:
    """Return values and indices `[n, p]`, or None for zero codes."""
    if codes is None:
        return None
    if codes.indices is not None:
        return codes.values, codes.indices
    every = torch.arange(codes.n_atoms, device=codes.values.device)
    return codes.values, every.expand(len(codes.values), -1)


def _extrapolated(pairs: Pairs | None, before: Pairs | None, beta: Tensor) -> Pairs | None:
    """Return `a + beta (a - a_before)`, repeated indices standing for sums."""
    if pairs is None:
        return None
    values, indices = (1 + beta) * pairs[0], pairs[1]
    if before is None:
        return values, indices
    return torch.cat([values, -beta * before[0]], 1), torch.cat([indices, before[1]], 1)


def _parameters(tensors: Iterator[Tensor]) -> nn.ParameterList:
    return nn.ParameterList(nn.Parameter(tensor) for tensor in tensors)


def _fista_momentum() -> Iterator[float]:
    """Yield `(t - 1) / t'` after every step of FISTA (Beck & Teboulle 2009, eqs. 4.2-4.3)."""
    t = 1.0
    while True:
        following = (1 + math.sqrt(1 + 4 * t * t)) / 2
        yield (t - 1) / following
        t = following
