"""What makes the codes of unrolled layers sparse where they are counted, not priced.

Legend: n rows, m atoms, k kept codes per row, c candidates per row, T layers, t a layer.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dictlearn import processes
from dictlearn.codes import Codes
from dictlearn.errors import InputError
from dictlearn.inference.layers import Layer, Pairs
from dictlearn.inference.merging import kth_largest, packed, top_of_batch, top_of_rows
from dictlearn.kernels import (
    batch_topk_layer,
    restricted_layer,
    screen,
    threshold_layer,
    topk_layer,
)
from dictlearn.mesh import ALONE, Processes
from dictlearn.prox import BatchTopK, Jump, Prox, TopK

MEMORY = 0.95
"""Share of the running cut that a training step keeps: the cut is a mean over 20 steps. More
would average out less noise than codes drift."""

GAIN = 5.0
"""How much faster log-thresholds move than Adam's rate: at a rate of 0.006 by 3 % in a step.
Taken as they are they would need thousands of steps to find their place."""


class Cut(nn.Module):
    """The running mean over training steps of the smallest code that a batch kept.

    Several processes share one batch out, and the cut is the same in all. What exceeds it is kept
    at use, so that a row's codes depend on that row alone.
    """

    value: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("value", torch.tensor(torch.inf))

    def forget(self) -> None:
        """Start anew; until the next step no cut is known."""
        self.value.fill_(torch.inf)

    @property
    def known(self) -> bool:
        """Whether there was a training step."""
        return bool(self.value.isfinite())

    @torch.no_grad()
    def observe(self, codes: Codes, shards: Processes = ALONE) -> None:
        """Take the codes of a training step in, over the atoms of this process."""
        positive = codes.values > 0
        own = torch.where(positive, codes.values, torch.inf).amin()
        smallest = shards.smallest(processes.smallest(own))
        smallest = torch.where(smallest.isfinite(), smallest, 0.0)
        mean = MEMORY * self.value + (1 - MEMORY) * smallest
        self.value.copy_(torch.where(self.value.isfinite(), mean, smallest))


class Jumps(nn.Module):
    """The thresholds of JumpReLU, `scale_t exp(GAIN factor_t)`: learned per layer and atom.

    The scale is a constant. With a target L0 it is what the first training batch needs to meet
    it, so that training need not search for it through orders of magnitude; without, where a
    code's price is what it saves, `sqrt(2 lambda step)`.
    """

    scales: Tensor
    fitted: Tensor

    def __init__(self, n_layers: int, atoms: Tensor) -> None:
        super().__init__()
        new = (nn.Parameter(atoms.new_zeros(len(atoms))) for _ in range(n_layers))
        self.factors = nn.ParameterList(new)
        self.register_buffer("scales", atoms.new_zeros(n_layers))
        self.register_buffer("fitted", torch.zeros(n_layers, dtype=torch.bool))
        self._fitted = [False] * n_layers
        self._given = True

    @torch.no_grad()
    def start(self, scale: float, fitted: bool) -> None:
        """Start all thresholds at a scale, which stays if it is said to be fitted."""
        self.scales.fill_(scale)
        self._given = fitted
        self.forget()
        for factor in self.factors:
            factor.zero_()

    def forget(self) -> None:
        """Fit the scales anew, unless they were given, to factors as they are."""
        self.fitted.fill_(self._given)
        self._fitted = [False] * len(self._fitted)

    @torch.no_grad()
    def fit(self, t: int, scores: Tensor, k: float, shards: Processes = ALONE) -> None:
        """Let the scale be the one at which the rows keep `k` scores on average, the first time."""
        if self._fitted[t]:
            return
        self._fitted[t] = True  # the device is asked once
        if not self.fitted[t]:
            first = processes.rank() * len(scores)
            above = round((first + len(scores)) * k) - round(first * k)
            above = max(1, min(above, scores.numel() * shards.count))
            cut = kth_largest(scores / torch.exp(GAIN * self.factors[t]), above, shards)
            self.scales[t] = cut.clamp_min(torch.finfo(scores.dtype).tiny)
            self.fitted[t] = True

    def threshold(self, t: int) -> Tensor:
        """Return the thresholds of a layer, `[m]`."""
        scale = self.scales[t].clone()  # the next layer's may be fitted before the backward pass
        return scale * torch.exp(GAIN * self.factors[t])


class Screening(NamedTuple):
    """Which layers look at all atoms, to choose the candidates of those that follow.

    Attributes:
        n_candidates: c.
        at: the layers, the first one always.
    """

    n_candidates: int
    at: tuple[int, ...]


def screening(n_candidates: int | None, n_layers: int, rescreen: bool) -> Screening | None:
    """Return which of T layers choose how many candidates, None if all look at all atoms."""
    if n_candidates is None:
        return None
    return Screening(n_candidates, (0, n_layers // 2) if rescreen else (0,))


def check_candidates(n_candidates: int, prox: Prox, n_atoms: int) -> None:
    """Raise InputError when so many candidates do not fit the sparsity or the dictionary."""
    if not isinstance(prox, TopK | BatchTopK):
        raise InputError(
            "inference.n_candidates= is for sparsities that keep a number of codes: choose "
            "prox=topk or prox=batch_topk, or set inference.n_candidates=null."
        )
    least = max(prox.k, *(prox.sampled or (0,))) if isinstance(prox, TopK) else prox.k
    if not least <= n_candidates <= n_atoms:
        raise InputError(
            f"inference.n_candidates={n_candidates} must be between the {least} codes that prox "
            f"keeps and dictionary.n_atoms={n_atoms}."
        )


class Counting:
    """The layers of one forward pass with `topk` or `batch_topk`.

    The inner layers of `batch_topk` keep k codes a row; the last one shares n k out among the
    rows, or at use keeps what exceeds the cut.

    Args:
        prox: the sparsity.
        n_layers: T.
        selection: how exact the choice is; see `kernels.topk_layer`.
        screening: None: every layer looks at all atoms.
        cut: of `batch_topk`; None: the last layer keeps k a row.
        training: whether the batch shares its codes out, and moves the cut.
        shards: the processes that hold the atoms together; layers and codes are of this one's.
    """

    def __init__(
        self,
        prox: TopK | BatchTopK,
        n_layers: int,
        selection: str,
        screening: Screening | None,
        cut: Cut | None,
        training: bool,
        shards: Processes = ALONE,
    ) -> None:
        self.shards = shards
        self.k, self.n_layers, self.selection = prox.k, n_layers, selection
        self.screening, self.cut, self.training = screening, cut, training
        self.candidates: Tensor | None = None

    def __call__(self, t: int, residual: Tensor, layer: Layer, start: Pairs | None) -> Codes:
        """Return the codes of one layer; see `layers.Sparse`."""
        shared = t == self.n_layers - 1 and self.cut is not None
        sized = (residual, layer.weight, layer.threshold)
        if self.screening is not None:
            c = self.screening.n_candidates
            if self.candidates is None or t in self.screening.at:
                self.candidates = screened(residual, layer, c, start)
            kept = restricted_layer(*sized, c if shared else self.k, self.candidates, start)
            return self.shared(kept) if shared else kept
        if not shared or self.cut is None:
            at_most = min(self.k, len(layer.weight))
            kept = topk_layer(*sized, at_most, start, self.selection)
            return top_of_rows(kept, self.k, self.shards)
        if not self.training:
            return threshold_layer(*sized, self.cut.value, start, self.selection)
        kept = batch_topk_layer(*sized, self.k, start, self.selection)
        kept = top_of_batch(kept, self.k * len(residual), self.shards)
        self.cut.observe(kept, self.shards)
        return kept

    def shared(self, codes: Codes) -> Codes:
        """Keep of the candidates' codes `[n, c]` what the batch, or at use the cut, lets pass."""
        assert self.cut is not None
        values = codes.values.detach()
        if not self.training:
            return packed(codes, values > self.cut.value)
        least = kth_largest(values, min(values.numel(), self.k * len(values)), self.shards)
        kept = packed(codes, (values >= least) & (values > 0))
        self.cut.observe(kept)
        return kept


def screened(residual: Tensor, layer: Layer, c: int, start: Pairs | None) -> Tensor:
    """Return the `c` most promising atoms of every row, int64 `[n, c]`."""
    return screen(residual, layer.weight, layer.threshold, c, start)


class Jumping:
    """The layers of one forward pass with `jump`.

    Raises:
        InputError: the layers were built without thresholds.

    Attributes:
        count: how many codes the last layer passed, `[n]`, with a gradient for its thresholds;
            None at use.
    """

    def __init__(
        self, prox: Jump, jumps: Jumps | None, selection: str, shards: Processes = ALONE
    ) -> None:
        if jumps is None:
            raise InputError(
                "prox=jump needs thresholds that are learned with it, and this encoder was built "
                "for another sparsity: train it with prox=jump."
            )
        self.prox, self.jumps, self.selection = prox, jumps, selection
        self.shards = shards
        self.count: Tensor | None = None

    def train(self, t: int, point: Tensor, layer: Layer) -> Codes:
        """Return the codes of one layer, dense; see `layers.Dense`."""
        scores = point - layer.threshold
        if self.prox.target_l0 is not None:
            self.jumps.fit(t, scores, self.prox.target_l0, self.shards)
        threshold = self.jumps.threshold(t)
        self.count = self.shards.sum(self.prox.count(scores, threshold))
        return self.prox(scores, threshold)

    def use(self, t: int, residual: Tensor, layer: Layer, start: Pairs | None) -> Codes:
        """Return the codes of one layer, k-sparse; see `layers.Sparse`."""
        sized = (residual, layer.weight, layer.threshold)
        return threshold_layer(*sized, self.jumps.threshold(t), start, self.selection)
