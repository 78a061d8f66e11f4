"""What every inference method is to the learner: a module that turns hidden states into codes.

Legend: n rows, m atoms, d width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from dictlearn.codes import Codes
from dictlearn.dictionary import Dictionary
from dictlearn.errors import InputError
from dictlearn.inference.driver import Solution
from dictlearn.mesh import ALONE, Processes
from dictlearn.prox import Prox


class Inference(nn.Module, ABC):
    """Sparse inference `x -> a` for one dictionary, built in two steps.

    A config says only what kind of inference it is; `build` gives it the sizes.

    Attributes:
        differentiable: whether codes carry gradients, to the encoder's own parameters and to
            the atoms. If not, they are constants of the dictionary's loss.
        shards: the processes that hold the atoms together; parameters, atoms and codes are then
            those of this process.
    """

    differentiable: bool
    shards: Processes = ALONE

    @property
    def needs_price(self) -> bool:
        """Whether it works with priced codes only (a convex sparsity), not with counted ones."""
        return False

    @property
    def learned(self) -> Inference | None:
        """The encoder that is trained, itself or a part of it, if there is one."""
        return self if self.differentiable else None

    @property
    def boundaries(self) -> tuple[float, ...]:
        """Shares of the run at which its phase changes; the schedule starts anew there."""
        return ()

    def check_shards(self) -> None:
        """Raise InputError unless it can work with atoms that several processes hold."""
        raise InputError(
            "trainer=dictionary_parallel cannot share this inference out: choose "
            "inference=unrolled, autoencoder, fista, greedy_fista or ista."
        )

    def advance(self, fraction: float) -> None:
        """Take note of the share of the run that is done, before every training step."""

    def observe(self, l0: Tensor) -> None:
        """Take the mean L0 of a training step, 0-dimensional, over the rows of all processes."""

    def forget_prices(self) -> None:
        """Find anew what depends on how many codes are wanted; what else was learned stays."""
        for part in self.children():
            if isinstance(part, Inference):
                part.forget_prices()

    @abstractmethod
    def build(self, dictionary: Dictionary, prox: Prox) -> None:
        """Create the parameters and buffers for a dictionary and a sparsity.

        Raises:
            InputError: the sparsity does not fit the inference or the dictionary.
        """

    @abstractmethod
    def reset(self, dictionary: Dictionary) -> None:
        """Start anew from the dictionary's atoms, after they were initialised from data."""

    @abstractmethod
    def reset_atoms(self, dictionary: Dictionary, indices: Tensor) -> None:
        """Start some atoms anew, after they were replaced."""

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        atoms: Tensor,
        prox: Prox,
        initial: Codes | None = None,
        certify: bool = False,
    ) -> Solution:
        """Return the codes of `x: [n, d]`, which the dictionary's bias was subtracted from.

        Args:
            x: `[n, d]`.
            atoms: `[m, d]`, unit rows.
            prox: the sparsity.
            initial: codes to start from.
            certify: whether the duality gap is wanted where it costs extra.
        """
