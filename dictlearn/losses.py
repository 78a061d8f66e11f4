"""What a training step minimises: the objective, and what the autoencoders add to it.

Legend: n rows, m atoms, d width, k codes kept per row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from dictlearn import processes
from dictlearn.codes import Codes
from dictlearn.dictionary import Dictionary
from dictlearn.errors import InputError, number, whole_number
from dictlearn.inference import Inference, Solution
from dictlearn.inference.merging import among_largest, top_of_rows
from dictlearn.kernels import reconstruct
from dictlearn.prox import Prox


class View(NamedTuple):
    """One training step, as a loss sees it.

    Attributes:
        x: what was coded, `[n, d]`: normalised and less the dictionary's bias.
        decoded: its reconstruction `a Phi`, `[n, d]`.
        solution: the codes and what the encoder adds to the loss.
        dictionary: the atoms; where processes hold them together, codes and what else belongs to
            atoms are those of this process.
        inference: the encoder.
        prox: the sparsity of this step.
        weight: of every row, `[n]`.
        dead: which atoms count as dead, bool `[m]`.
        idle: for how many vectors an atom has not fired, int64 `[m]`.
    """

    x: Tensor
    decoded: Tensor
    solution: Solution
    dictionary: Dictionary
    inference: Inference
    prox: Prox
    weight: Tensor
    dead: Tensor
    idle: Tensor


class Loss(Protocol):
    """What a training step minimises."""

    def __call__(self, view: View) -> Tensor:
        """Return the loss, 0-dimensional."""

    def check(self, n_atoms: int, inference: Inference) -> None:
        """Raise InputError when the loss does not fit the dictionary or the inference."""


@runtime_checkable
class Scored(Protocol):
    """An encoder that can say how strongly some atoms would like to fire."""

    def scores(self, x: Tensor, atoms: Tensor, indices: Tensor | None) -> Tensor:
        """Return pre-activations less thresholds, `[n, j]`, of the atoms `indices: [j]`."""


@dataclass(frozen=True)
class Objective:
    """The mean over rows of `weight * (1/2 |x - x_hat|^2 + penalty(a) + extra)`.

    `extra` is what a learned encoder brings along: `Solution.extra_loss`.
    """

    def __call__(self, view: View) -> Tensor:
        """Return the loss, 0-dimensional."""
        # One function, not a difference and its square: two matrices [n, d] less in a step.
        error = torch.nn.functional.mse_loss(view.decoded, view.x, reduction="none").sum(-1)
        return _weighted(view, 0.5 * error + _price(view))

    def check(self, n_atoms: int, inference: Inference) -> None:
        """Accept everything."""


@dataclass(frozen=True)
class AuxK:
    """Dead atoms learn to reconstruct what the others leave (Gao et al. 2024, section A.2).

    With the residual `e = x - x_hat` as a constant, `z` the codes of the `k_aux` dead atoms
    with the highest scores, rectified, and `e_hat = z Phi`, added to the main loss is

        coefficient * 1/2 * mean |e - e_hat|^2 / mean |e - mean e|^2.

    It moves the dead atoms and their part of the encoder, and nothing else; while no atom is
    dead it is zero. The factor 1/2 is that of the objective, so that `coefficient` is the one
    that is published for an error without it, of vectors of unit variance.

    Args:
        main: the loss that it is added to, `Objective()` if None.
        k_aux: dead atoms used per row.
        coefficient: alpha.
        max_candidates: the longest idle atoms among which the dead are looked for; bounds the
            cost of a step when many are dead.

    Raises:
        InputError: a number is out of its range.
    """

    main: Loss | None = None
    k_aux: int = 256
    coefficient: float = 1 / 32
    max_candidates: int = 1024

    def __post_init__(self) -> None:
        whole_number("loss.k_aux", self.k_aux)
        whole_number("loss.max_candidates", self.max_candidates)
        number("loss.coefficient", self.coefficient, minimum=0.0)

    def __call__(self, view: View) -> Tensor:
        """Return the main loss and the auxiliary one, 0-dimensional."""
        return self._main()(view) + self.auxiliary(view)

    def check(self, n_atoms: int, inference: Inference) -> None:
        """Raise InputError when the inference is no encoder with scores."""
        self._main().check(n_atoms, inference)
        if not isinstance(inference, Scored):
            raise InputError(
                "loss=auxk trains the encoder of dead atoms, and this inference has none: "
                "choose inference=unrolled, or loss=objective."
            )

    def _main(self) -> Loss:
        return Objective() if self.main is None else self.main

    def auxiliary(self, view: View) -> Tensor:
        """Return the auxiliary loss alone, 0-dimensional."""
        count = min(self.max_candidates, view.dictionary.n_atoms)
        if view.idle.device.type == "cpu":
            # Where looking is free; elsewhere the host would wait for the device at every step.
            count = min(count, int(view.dictionary.shards.total(view.dead.sum())))
        return self.among(view, count) if count > 0 else view.x.new_zeros(())

    def among(self, view: View, count: int) -> Tensor:
        """Return the auxiliary loss of the dead among the `count` longest idle atoms."""
        shards, own = view.dictionary.shards, min(count, len(view.idle))
        idle, chosen = view.idle.where(view.dead, -1).topk(own)
        dead = (idle >= 0) & among_largest(idle[None], count, shards)[0]
        assert isinstance(view.inference, Scored)
        scores = view.inference.scores(view.x.detach(), view.dictionary.atoms, chosen)
        values, atoms = torch.relu(scores) * dead, view.dictionary.atoms[chosen]
        codes = Codes.from_dense(values)
        if self.k_aux < count:
            best = values.topk(min(self.k_aux, own), dim=1, sorted=False)
            codes = top_of_rows(Codes(*best, own), self.k_aux, shards)
        residual = (view.x - view.decoded).detach()
        decoded = shards.sum(reconstruct(codes, atoms))
        error = _weighted(view, _squared(residual - decoded))
        # Of all processes, so that the mean of their gradients is that of the whole ratio.
        middle = processes.mean(residual.mean(0))
        spread = processes.mean(_weighted(view, _squared(residual - middle)))
        smallest = torch.finfo(spread.dtype).tiny
        any_dead = shards.largest(dead.any().to(error.dtype))
        return 0.5 * self.coefficient * any_dead * error / spread.clamp_min(smallest)


@dataclass(frozen=True)
class Matryoshka:
    """Nested dictionaries: every prefix of the atoms reconstructs (Bussmann et al. 2025, eq. 7).

    With `x_hat_p` decoded from the first `m_p` atoms alone, the error of the objective becomes

        mean over p of 1/2 |x - x_hat_p|^2,    m_1 < m_2 < ... < m_P = m.

    It is the mean over prefixes where the paper takes their sum, so that one prefix is the
    objective and no other rate of learning is needed.

    Args:
        prefixes: the shares `m_p / m` of the atoms, rising, the last one 1.

    Raises:
        InputError: the shares do not rise to 1.
    """

    prefixes: Sequence[float] = (0.0625, 0.125, 0.25, 0.5, 1.0)

    def __post_init__(self) -> None:
        shares = [number("loss.prefixes", share, 0.0, 1.0) for share in self.prefixes]
        rising = all(a < b for a, b in zip([0.0, *shares], shares, strict=False))
        if not shares or not rising or shares[-1] != 1.0:
            raise InputError(
                f"loss.prefixes={list(shares)} must rise from above 0 to 1, the whole dictionary: "
                "for example [0.25,0.5,1]."
            )
        object.__setattr__(self, "prefixes", tuple(shares))

    def __call__(self, view: View) -> Tensor:
        """Return the loss, 0-dimensional."""
        codes, atoms = view.solution.codes, view.dictionary.atoms
        shards, ends = view.dictionary.shards, self._ends(view.dictionary.n_atoms)
        before = shards.rank * len(atoms)  # atoms of the shards before this one
        decoded = torch.zeros_like(view.decoded)
        error = 0.5 * _squared(view.x - view.decoded)
        for first, end in zip([0, *ends], ends[:-1], strict=False):
            decoded = decoded + shards.sum(_part(codes, atoms, first - before, end - before))
            error = error + 0.5 * _squared(view.x - decoded)
        return _weighted(view, error / len(ends) + _price(view))

    def check(self, n_atoms: int, inference: Inference) -> None:
        """Raise InputError when two prefixes are equal for so few atoms."""
        ends = self._ends(n_atoms)
        if ends[0] < 1 or len(set(ends)) < len(ends):
            raise InputError(
                f"loss.prefixes={list(self.prefixes)} are {ends} of dictionary.n_atoms={n_atoms}: "
                "every prefix must be larger than the one before. Give fewer, or learn more atoms."
            )

    def _ends(self, n_atoms: int) -> list[int]:
        return [round(share * n_atoms) for share in self.prefixes]


def _part(codes: Codes, atoms: Tensor, first: int, end: int) -> Tensor:
    """Return what the atoms from `first` to before `end` decode to, `[n, d]`."""
    if codes.indices is None:
        part = slice(max(first, 0), max(end, 0))
        return codes.values[:, part] @ atoms[part]
    inside = (codes.indices >= first) & (codes.indices < end)
    return reconstruct(codes._replace(values=codes.values * inside), atoms)


def _price(view: View) -> Tensor:
    """Return the penalty of every row and what its encoder adds, `[n]`."""
    price = view.dictionary.shards.sum(view.prox.value(view.solution.codes))
    extra = view.solution.extra_loss
    return price if extra is None else price + extra


def _weighted(view: View, values: Tensor) -> Tensor:
    return (view.weight * values).mean()


def _squared(rows: Tensor) -> Tensor:
    return rows.square().sum(-1)
