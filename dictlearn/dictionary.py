"""The dictionary: unit-norm atoms that hidden states are written with.

Legend: n rows, m atoms, d width. Rows are data and atoms: the paper's `Phi` is our `atoms.T`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dictlearn import kernels
from dictlearn.codes import Codes
from dictlearn.errors import InputError, choice, flag, whole_number
from dictlearn.mesh import ALONE, Processes
from dictlearn.seeding import generator

FOR_BIAS = 2**14
"""Hidden states whose mean is the first bias, at most."""


class Dictionary(nn.Module):
    """`x = a Phi + b + noise` with unit-norm rows of `Phi` (Yun et al. 2021, eq. 1, and a bias).

    Args:
        n_atoms: `m`.
        width: `d`, the width of the hidden states.
        bias: whether a bias `b` is learned beside the atoms.
        initialization: `data` (atoms are hidden states, by `initialize_from`) or `gaussian`.
        dead_after_vectors: an atom that fired for none of so many vectors in a row is dead.
        path: of a run whose dictionary is to be the start, for `start_from`; None: a new one.
        seed: of the random start.

    Attributes:
        shards: the processes that hold the atoms together; `atoms` are those of this process.

    Raises:
        InputError: a number is too small, or `initialization` is not allowed.
    """

    def __init__(
        self,
        n_atoms: int,
        width: int,
        bias: bool = False,
        initialization: str = "gaussian",
        dead_after_vectors: int = 100_000,
        path: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.n_atoms = whole_number("dictionary.n_atoms", n_atoms)
        self.width = whole_number("width", width)
        self.initialization = choice(
            "dictionary.initialization", initialization, ("data", "gaussian")
        )
        self.dead_after_vectors = whole_number("dictionary.dead_after_vectors", dead_after_vectors)
        self.path, self.seed = path, seed
        self.shards: Processes = ALONE
        self._started = False
        start = torch.randn(self.n_atoms, self.width, generator=generator(seed, "atoms"))
        self.atoms = nn.Parameter(nn.functional.normalize(start, dim=1))
        self.bias = nn.Parameter(torch.zeros(self.width)) if flag("dictionary.bias", bias) else None

    @torch.no_grad()
    def start_from(self, other: Dictionary) -> None:
        """Start from the atoms and the bias of a dictionary that is there already.

        Raises:
            InputError: it has another number of atoms or another width.
        """
        if other.atoms.shape != self.atoms.shape:
            raise InputError(
                f"dictionary.path holds {other.n_atoms} atoms of width {other.width}, not "
                f"{self.n_atoms} of width {self.width}: set dictionary.n_atoms={other.n_atoms}, "
                "and take the transformer it was trained on."
            )
        self.atoms.copy_(other.atoms)
        if self.bias is not None and other.bias is not None:
            self.bias.copy_(other.bias)
        self._started = True

    def extra_repr(self) -> str:
        """Return the sizes, for `print(model)`."""
        return f"n_atoms={self.n_atoms}, width={self.width}, bias={self.bias is not None}"

    @property
    def n_for_start(self) -> int:
        """How many hidden states `initialize_from` makes use of."""
        if self._started:
            return 0
        if self.initialization == "data":
            return 4 * self.n_atoms
        return 0 if self.bias is None else min(4 * self.n_atoms, FOR_BIAS)

    @torch.no_grad()
    def initialize_from(self, x: Tensor) -> None:
        """Start from hidden states: the bias at their mean, the atoms (`data`) at random rows.

        A dictionary that started from another one stays as it is.

        Equal and zero rows count once and not at all; if there are fewer rows than atoms, the
        atoms that are left keep their Gaussian start.

        Args:
            x: hidden states `[n, d]`, normalised as they will be in training.

        Raises:
            InputError: the width is not the dictionary's.
        """
        if x.shape[-1] != self.width:
            raise InputError(
                f"The hidden states have width {x.shape[-1]} but the dictionary has width "
                f"{self.width}: they must come from the same transformer."
            )
        if self._started:
            return
        x = x.to(self.atoms)
        if self.bias is not None:
            self.bias.copy_(x.mean(0))
        if self.initialization == "data":
            order = torch.randperm(len(x), generator=generator(self.seed, "rows"))
            rows = _distinct(self.centre(x[order[: 4 * self.n_atoms].to(x.device)]))
            self.atoms[: len(rows[: self.n_atoms])] = rows[: self.n_atoms]
        self.renormalize_()

    def centre(self, x: Tensor) -> Tensor:
        """Return `x - b`, `[n, d]`: what is to be coded."""
        return x if self.bias is None else x - self.bias

    def uncentre(self, x: Tensor) -> Tensor:
        """Return `x + b`, `[n, d]`: the way back."""
        return x if self.bias is None else x + self.bias

    def decode(self, codes: Codes) -> Tensor:
        """Return `a Phi`, `[n, d]`: the reconstruction of what `centre` returns."""
        return self.shards.sum(kernels.reconstruct(codes, self.atoms))

    @torch.no_grad()
    def renormalize_(self) -> None:
        """Scale every atom to unit norm, in place."""
        self.atoms.copy_(nn.functional.normalize(self.atoms, dim=1))


def _distinct(rows: Tensor) -> Tensor:
    """Return the non-zero rows without repetitions, in the order of their first occurrence."""
    rows = rows[rows.abs().sum(1) > 0]
    _, group = torch.unique(rows, dim=0, return_inverse=True)
    first = torch.full((len(rows),), len(rows), device=rows.device)
    first.scatter_reduce_(0, group, torch.arange(len(rows), device=rows.device), "amin")
    return rows[first[first < len(rows)].sort().values]
