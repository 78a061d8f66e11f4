"""A few proximal-gradient layers with learned sizes: LISTA, and at one layer the SAE.

Legend: n rows, m atoms, d width, k kept codes per row, c candidates per row, T layers, t a layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from dictlearn.codes import Codes
from dictlearn.dictionary import Dictionary
from dictlearn.errors import InputError, choice, flag, whole_number
from dictlearn.inference.conjugate import refit_in, whole_or_none
from dictlearn.inference.driver import Solution
from dictlearn.inference.interface import Inference
from dictlearn.inference.layers import Layer, dense_layers, priced, sparse_layers
from dictlearn.inference.objective import duality_gap
from dictlearn.inference.restricted import compiled_layers, runs_compiled
from dictlearn.inference.sparsify import (
    Counting,
    Cut,
    Jumping,
    Jumps,
    check_candidates,
    screening,
)
from dictlearn.inference.starts import AnalyticWeight, checked_step, first_step, fista_momentum
from dictlearn.prox import BatchTopK, Jump, Priced, Prox, Relu, TopK


class Unrolled(Inference):
    """`a <- prox(y + s_t W_t (x - y B_t), theta_t)`, T times (Gregor & LeCun 2010).

    `y` is the last code, or with momentum `a + beta_t (a - a_before)`. Learned are the logarithm of
    a step size `s_t` per layer, a threshold per layer and atom, and what the options add. One layer
    with `topk`, `batch_topk`, `jump` or `relu` and shared weights is the autoencoder of that name;
    `shared synthesis=learned` is LISTA, else LISTA-CP (Chen et al. 2018), `analytic` ALISTA.

    Where `topk` draws its k at every step, step sizes and thresholds have a slope each in log k.

    Args:
        n_layers: T.
        weights: the analysis matrix `W_t: [m, d]`: `tied` is the dictionary itself, which then
            also learns from being an encoder; `shared` one learned matrix, `untied` one per
            layer, both starting at the dictionary; `analytic` is computed from the dictionary
            (see `analytic_weight`), a constant of the gradient.
        momentum: whether `beta_t` is learned, starting at FISTA's.
        initial_step: the first step size: `lipschitz` (1 / largest eigenvalue, which makes the
            untrained layers T steps of ISTA or FISTA, and is 60 times too small for sparsities
            that count codes), a number, or `auto`: for these 1 with one layer and 0.7 with more,
            or less where the atoms are so much alike that it overshoots, else `lipschitz`.
        synthesis: `B_t: [m, d]` inside the layers: the `dictionary`, or `learned` apart from it,
            one for all layers, or one per layer if the weights are untied.
        thresholds: `price`: `s_t lambda exp(tau_t)`, positive, so that it follows the price, with
            tau learned; `bias`: any number, starting at `s_t lambda` (or 0), as in autoencoders;
            `auto`: `bias` without a price and for one layer with weights of its own, else `price`.
        n_candidates: c: the first layer looks at all atoms, and all layers work on the c most
            promising alone; None: all layers look at all atoms. Needs `topk` or `batch_topk`.
        rescreen: whether the middle layer looks at all atoms again and chooses new candidates.
        refit: whether at use the codes are refitted to the row on their support. In training
            they are not: at the optimum of the support the error tells an encoder nothing.
        refit_steps: steps of the refit (see `approach`), 2 bring most of it; None: all the way.
        selection: `exact`, `fast` or `auto`; see `kernels.topk_layer`.
        engine: `torch`, `compiled` (layers on candidates at use, by numba), or `auto`.

    Raises:
        InputError: an option is not allowed.
    """

    differentiable = True

    def __init__(  # noqa: PLR0913 - one argument per option of the config
        self,
        n_layers: int = 2,
        weights: str = "tied",
        momentum: bool = False,
        initial_step: str | float = "auto",
        synthesis: str = "dictionary",
        thresholds: str = "auto",
        n_candidates: int | None = None,
        rescreen: bool = False,
        refit: bool = False,
        refit_steps: int | None = None,
        selection: str = "auto",
        engine: str = "auto",
    ) -> None:
        super().__init__()
        self.n_layers = whole_number("inference.n_layers", n_layers)
        kinds = ("tied", "shared", "untied", "analytic")
        self.weights = choice("inference.weights", weights, kinds)
        self.momentum = flag("inference.momentum", momentum)
        self.initial_step = checked_step(initial_step)
        self.synthesis = choice("inference.synthesis", synthesis, ("dictionary", "learned"))
        self.threshold_kind = choice("inference.thresholds", thresholds, ("auto", "price", "bias"))
        self.n_candidates = whole_or_none("inference.n_candidates", n_candidates)
        self.rescreen = flag("inference.rescreen", rescreen)
        if self.rescreen and n_candidates is None:
            raise InputError("inference.rescreen=true needs inference.n_candidates=, a number.")
        self.refit = flag("inference.refit", refit)
        self.refit_steps = whole_or_none("inference.refit_steps", refit_steps)
        self.selection = choice("inference.selection", selection, ("auto", "exact", "fast"))
        self.engine = choice("inference.engine", engine, ("auto", "torch", "compiled"))
        if self.momentum and self.weights == "untied" and self.synthesis == "learned":
            raise InputError(
                "inference.momentum=true combines residuals of two layers, which weights=untied "
                "with synthesis=learned decode differently: choose inference.weights=shared."
            )
        self._analytic = AnalyticWeight()
        self._prox: Prox | None = None

    def build(self, dictionary: Dictionary, prox: Prox) -> None:
        """Create the layers; see `Inference.build`."""
        prox.check(dictionary.n_atoms)
        if self.n_candidates is not None:
            check_candidates(self.n_candidates, prox, dictionary.n_atoms)
        self._prox = prox
        atoms = dictionary.atoms.detach()
        m, layers = len(atoms), range(self.n_layers)
        own = {"shared": 1, "untied": self.n_layers}.get(self.weights, 0)
        # The first layer has nothing to decode, unless it is given codes.
        apart = self.n_layers - 1 if self.weights == "untied" else min(self.n_layers - 1, 1)
        apart *= self.synthesis == "learned"
        nested = layers if isinstance(prox, TopK) and prox.sampled else range(0)
        # One tensor per layer, not one stacked: what belongs to atoms has them in dimension 0.
        self.log_steps = _parameters(atoms.new_zeros(()) for _ in layers)
        self.thresholds = _parameters(atoms.new_zeros(m) for _ in layers)
        self.analysis = _parameters(atoms.clone() for _ in range(own))
        self.syntheses = _parameters(atoms.clone() for _ in range(apart))
        self.betas = _parameters(atoms.new_zeros(()) for _ in layers[1:] if self.momentum)
        self.step_slopes = _parameters(atoms.new_zeros(()) for _ in nested)
        self.threshold_slopes = _parameters(atoms.new_zeros(()) for _ in nested)
        self.cut = Cut() if isinstance(prox, BatchTopK) else None
        self.jumps = Jumps(self.n_layers, atoms) if isinstance(prox, Jump) else None
        self.reset(dictionary)

    @torch.no_grad()
    def reset(self, dictionary: Dictionary) -> None:
        """Give every parameter its initial value for the dictionary as it is now."""
        step = self._first_step(dictionary.atoms)
        for log_step in self.log_steps:
            log_step.fill_(math.log(step))
        for threshold in self.thresholds:
            threshold.fill_(self._first_threshold())
        for matrix in (*self.analysis, *self.syntheses):
            matrix.copy_(dictionary.atoms)
        for beta, value in zip(self.betas, fista_momentum(), strict=False):
            beta.fill_(value)
        for slope in (*self.step_slopes, *self.threshold_slopes):
            slope.zero_()
        self.forget_prices()
        if self.jumps is not None and isinstance(self._prox, Jump):
            # Hard thresholding at sqrt(2 lambda s) is the proximal step of s lambda |a|_0.
            scale, given = math.sqrt(2 * self._prox.lambda_ * step), self._prox.target_l0 is None
            self.jumps.start(scale, given)

    @torch.no_grad()
    def reset_atoms(self, dictionary: Dictionary, indices: Tensor) -> None:
        """Give some atoms their initial rows of the matrices and their thresholds."""
        for matrix in (*self.analysis, *self.syntheses):
            matrix[indices] = dictionary.atoms[indices]
        for threshold in self.thresholds:
            threshold[indices] = self._first_threshold()
        for factor in () if self.jumps is None else self.jumps.factors:
            factor[indices] = 0.0

    def forget_prices(self) -> None:
        """Forget cut and scales; see `Inference.forget_prices`."""
        if self.cut is not None:
            self.cut.forget()
        if self.jumps is not None:
            self.jumps.forget()

    def check_shards(self) -> None:
        """Raise InputError where layers or refit need all atoms in one place."""
        if self.n_candidates is not None or self.refit:
            wanted = "inference.n_candidates=null inference.refit=false"
            raise InputError(f"trainer=dictionary_parallel has neither of these: set {wanted}.")

    def _first_step(self, atoms: Tensor) -> float:
        weight = self._analytic(atoms) if self.weights == "analytic" else None
        return first_step(self.initial_step, self.n_layers, self._prox, atoms, weight)

    def _first_threshold(self) -> Tensor | float:
        if self._prox is None:
            raise RuntimeError("build(dictionary, prox) creates the layers, and comes first")
        if self._follows_price() or not self._prox.convex:
            return 0.0
        return torch.exp(self.log_steps[0]) * self._mean_price()[0]

    def _follows_price(self) -> bool:
        if not isinstance(self._prox, Priced) or isinstance(self._prox, Relu):
            return False
        autoencoder = self.n_layers == 1 and self.weights in ("shared", "untied")
        return self.threshold_kind == "price" or (self.threshold_kind == "auto" and not autoencoder)

    def scores(self, x: Tensor, atoms: Tensor, indices: Tensor | None = None) -> Tensor:
        """Return the first layer's pre-activations less its thresholds, `[n, j]`.

        Args:
            x: `[n, d]`.
            atoms: `[m, d]`.
            indices: of the atoms wanted, `[j]`; all if None.
        """
        assert self._prox is not None
        layer = self._layer(0, atoms, self._prox, self._mean_price())
        weight, threshold = layer.weight, layer.threshold
        if indices is not None:
            weight, threshold = weight[indices], threshold[indices]
        # What all atoms share is a constant: an auxiliary loss of some atoms moves these alone.
        return torch.addmm(threshold, x * layer.step.detach(), weight.T, beta=-1)

    def forward(
        self,
        x: Tensor,
        atoms: Tensor,
        prox: Prox,
        initial: Codes | None = None,
        certify: bool = False,
    ) -> Solution:
        """Return codes that carry gradients; see `Inference.forward`.

        Raises:
            InputError: the sparsity is `jump` and the layers were built without its thresholds.
        """
        price = self._mean_price()
        if isinstance(prox, Priced):
            price = prox.penalty(x).price
            price = price[0] if len(price) == 1 else price
        layers = [self._layer(t, atoms, prox, price) for t in range(self.n_layers)]
        extra = None
        if isinstance(prox, TopK | BatchTopK):
            codes = self._counted(x, layers, prox, initial)
        elif isinstance(prox, Jump):
            codes, extra = self._jumped(x, layers, prox, initial)
        else:
            sparsify = priced(prox, x, self.shards)
            codes = dense_layers(x, layers, list(self.betas), initial, sparsify, self.shards)
        if self.refit and not self.training:
            codes = refit_in(self.refit_steps, x, codes, atoms, self.engine)
        no_gap = x.new_full((len(x),), torch.inf)
        gap = duality_gap(x, codes, atoms, prox, self.shards) if certify else no_gap
        return Solution(codes, gap, self.n_layers, gap <= 0, extra)

    def _mean_price(self) -> Tensor:
        """Return the price of training, `[1]`: what a sparsity without one goes on with."""
        first: Tensor = self.log_steps[0]
        price = self._prox.lambda_ if self._prox is not None and self._prox.convex else 0.0
        mean = math.fsum(price) / len(price) if isinstance(price, Sequence) else float(price)
        return first.new_full((1,), mean)  # made there: the host would wait for a copy

    def _layer(self, t: int, atoms: Tensor, prox: Prox, price: Tensor) -> Layer:
        log_step, threshold = self.log_steps[t], self.thresholds[t]
        built = self._prox
        if isinstance(prox, TopK) and isinstance(built, TopK) and built.sampled is not None:
            low, high = built.sampled
            far = math.log(prox.k / math.sqrt(low * high))
            log_step = log_step + far * self.step_slopes[t]
            threshold = threshold + far * self.shards.spread(self.threshold_slopes[t])
        step, weight, synthesis = log_step.exp(), atoms, atoms
        if self._follows_price():
            threshold = self.shards.spread(step) * price * threshold.exp()
        place = t if self.weights == "untied" else 0
        if self.weights == "analytic":
            weight = self._analytic(atoms, self.shards)
        elif self.weights != "tied":
            weight = self.analysis[place]
        if len(self.syntheses) > 0 and (t > 0 or self.weights != "untied"):
            synthesis = self.syntheses[max(place - 1, 0)]
        return Layer(step, weight, synthesis, threshold)

    def _counted(
        self, x: Tensor, layers: list[Layer], prox: TopK | BatchTopK, initial: Codes | None
    ) -> Codes:
        cut = self.cut if isinstance(prox, BatchTopK) else None
        if cut is not None and not self.training and not (prox == self._prox and cut.known):
            cut = None  # the cut of another k, or of no training: k codes a row instead
        looks = screening(self.n_candidates, self.n_layers, self.rescreen)
        make = Counting(prox, self.n_layers, self.selection, looks, cut, self.training, self.shards)
        if looks and runs_compiled(self.engine, x, layers, self.momentum):
            return compiled_layers(x, layers, initial, make)
        return sparse_layers(x, layers, list(self.betas), initial, make, self.shards)

    def _jumped(
        self, x: Tensor, layers: list[Layer], prox: Jump, initial: Codes | None
    ) -> tuple[Codes, Tensor | None]:
        make = Jumping(prox, self.jumps, self.selection, self.shards)
        if not self.training:
            given = (x, layers, list(self.betas), initial)
            return sparse_layers(*given, make.use, self.shards), None
        codes = dense_layers(x, layers, list(self.betas), initial, make.train, self.shards)
        assert make.count is not None
        return codes, prox.price(make.count)


def _parameters(tensors: Iterator[Tensor]) -> nn.ParameterList:
    return nn.ParameterList(nn.Parameter(tensor) for tensor in tensors)
