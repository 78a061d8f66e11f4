"""Pursuit with exchange as a module: as many codes for every row, or shared out among rows.

Legend: n rows, m atoms, d width, k codes kept per row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.dictionary import Dictionary
from dictlearn.errors import InputError, choice, number, whole_number
from dictlearn.inference.exchange import MOST, STARTS, exchange_pursuit, price_for_exchange
from dictlearn.inference.price import Price, over_processes, sample_of_all
from dictlearn.inference.pursuit_inference import Pursuit
from dictlearn.prox import BatchTopK, Prox

SAMPLE = 512
"""Rows by which training finds its first price; from there on it is steered."""


class ExchangePursuit(Pursuit):
    """Pursuit that takes choices back, the lowest error at equal L0; see `exchange_pursuit`.

    With `topk` every row has k codes. With `batch_topk` rows share them out, k on average: a code
    must save its price in squared error, and training steers that price. It is the same for all
    rows, so that the codes of a row depend on that row alone. Until the price is known, and for
    another k than that of training, rows have k codes each.

    Args:
        rounds: of exchange, at most.
        block: atoms exchanged at a time; None for a quarter of k.
        price: squared error that a code must save; None: nothing with `topk`, steered with
            `batch_topk`.
        start: `l1` or `zero`.
        engine: `auto`, `torch` or `compiled` (numba, on a CPU).

    Raises:
        InputError: an option is out of its range.
    """

    def __init__(
        self,
        rounds: int = 8,
        block: int | None = None,
        price: float | None = None,
        start: str = "l1",
        engine: str = "auto",
    ) -> None:
        super().__init__(engine)
        self.rounds = whole_number("inference.rounds", rounds)
        self.block = None if block is None else whole_number("inference.block", block)
        self.fixed = None if price is None else number("inference.price", price, 0.0)
        self.start = choice("inference.start", start, STARTS)
        self.steered: Price | None = None
        self._built: Prox | None = None

    def build(self, dictionary: Dictionary, prox: Prox) -> None:
        """Check the sparsity; see `Inference.build`."""
        super().build(dictionary, prox)
        self._built = prox
        if isinstance(prox, BatchTopK) and self.fixed is None:
            self.steered = Price(torch.inf, prox.k)

    def reset(self, dictionary: Dictionary) -> None:
        """Forget the price."""
        self.forget_prices()

    def forget_prices(self) -> None:
        """Find the price anew; see `Inference.forget_prices`."""
        if self.steered is not None:
            self.steered.lambda_.fill_(torch.inf)

    def observe(self, l0: Tensor) -> None:
        """Steer the price."""
        if self.steered is not None:
            self.steered.observe(l0)

    def at_price(self, price: float | None) -> ExchangePursuit:
        """Return the same at a price; itself if that is not known or it has one."""
        if price is None or self.fixed is not None:
            return self
        return ExchangePursuit(self.rounds, self.block, price, self.start, self.engine)

    @property
    def known_price(self) -> float | None:
        """Squared error that a code must save with `batch_topk`, if that is known."""
        if self.steered is None:
            return self.fixed
        price = float(self.steered.lambda_)
        return price if price < torch.inf else None

    def coded(self, x: Tensor, atoms: Tensor, prox: Prox, initial: Codes | None) -> Codes:
        """Share codes out where `prox` is batch_topk; see `Pursuit.coded`."""
        if not isinstance(prox, BatchTopK):
            return super().coded(x, atoms, prox, initial)
        k, price = prox.k, self.known_price if prox == self._built else self.fixed
        if price is None and self.training and self.steered is not None:
            self.steered.lambda_.fill_(over_processes(self._first_price(x, atoms, k), x.device))
            price = self.known_price
        if price is not None:
            k = min(MOST * k, len(atoms))
        return self._pursue(x, atoms, k, initial, price or 0.0)

    def _first_price(self, x: Tensor, atoms: Tensor, k: int) -> float:
        some = sample_of_all(x, SAMPLE)
        try:
            return price_for_exchange(some, atoms, k, engine=self.engine)
        except InputError:  # fewer codes are of use, whatever they cost: no reason to end a run
            return torch.finfo(x.dtype).eps * float(some.square().sum(1).mean())

    def pursue(self, x: Tensor, atoms: Tensor, k: int, initial: Codes | None) -> Codes:
        """Start from the support of `initial`, if given; see `Pursuit.pursue`."""
        return self._pursue(x, atoms, k, initial, self.fixed or 0.0)

    def _pursue(
        self, x: Tensor, atoms: Tensor, k: int, initial: Codes | None, price: float
    ) -> Codes:
        return exchange_pursuit(
            x,
            atoms,
            k,
            rounds=self.rounds,
            block=self.block,
            price=price,
            start=self.start,
            initial=initial,
            engine=self.engine,
        )
