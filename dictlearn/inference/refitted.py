"""Another inference's support, with the codes that fit best on it."""

from __future__ import annotations

from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.dictionary import Dictionary
from dictlearn.errors import choice
from dictlearn.inference.driver import Solution
from dictlearn.inference.engine import ENGINES
from dictlearn.inference.interface import Inference
from dictlearn.inference.refit import refit
from dictlearn.prox import Prox


class Refitted(Inference):
    """Refit the codes of another inference on their support; see `refit`.

    While a differentiable inference is in training its codes go through as they are: it learns
    with the codes that it makes itself, and is refitted when it is used.

    Args:
        inference: chooses the support.
        engine: of the refit: `auto`, `torch` or `compiled` (numba, on a CPU).

    Raises:
        InputError: there is no such engine.
    """

    def __init__(self, inference: Inference, engine: str = "auto") -> None:
        super().__init__()
        self.inference = inference
        self.engine = choice("inference.engine", engine, ENGINES)
        self.differentiable = inference.differentiable

    @property
    def needs_price(self) -> bool:
        """Whether the inference that chooses the support does."""
        return self.inference.needs_price

    @property
    def boundaries(self) -> tuple[float, ...]:
        """Those of the inference that chooses the support."""
        return self.inference.boundaries

    def advance(self, fraction: float) -> None:
        """Pass the share of the run on."""
        self.inference.advance(fraction)

    def observe(self, l0: Tensor) -> None:
        """Pass the mean L0 on."""
        self.inference.observe(l0)

    def build(self, dictionary: Dictionary, prox: Prox) -> None:
        """Build the inference that chooses the support."""
        self.inference.build(dictionary, prox)

    def reset(self, dictionary: Dictionary) -> None:
        """Start it anew."""
        self.inference.reset(dictionary)

    def reset_atoms(self, dictionary: Dictionary, indices: Tensor) -> None:
        """Start some of its atoms anew."""
        self.inference.reset_atoms(dictionary, indices)

    def forward(
        self,
        x: Tensor,
        atoms: Tensor,
        prox: Prox,
        initial: Codes | None = None,
        certify: bool = False,
    ) -> Solution:
        """Return refitted codes; the gap is that of the codes before, which chose the support."""
        solution: Solution = self.inference(x, atoms, prox, initial, certify)
        if self.training and self.differentiable:
            return solution
        return solution._replace(codes=refit(x, solution.codes, atoms, engine=self.engine))
