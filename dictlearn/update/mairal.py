"""Online dictionary learning from sufficient statistics, with no learning rate to find.

Legend: n rows, m atoms, d width, b atoms of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dictlearn import processes
from dictlearn.codes import Codes
from dictlearn.errors import number, whole_number
from dictlearn.update.moments import to_sphere
from dictlearn.update.optimizers import DictionaryOptimizer
from dictlearn.update.rates import Run
from dictlearn.update.rules import check_rate
from dictlearn.update.schedule import Schedule, check_schedule


class Statistics(NamedTuple):
    """What a batch says about the atoms.

    Attributes:
        gram: mean over rows of `a^T a`, `[m, m]`.
        moment: mean over rows of `a^T x`, `[m, d]`.
    """

    gram: Tensor
    moment: Tensor


@torch.no_grad()
def statistics(x: Tensor, codes: Codes, weight: Tensor | None = None) -> Statistics:
    """Return the statistics of rows `x: [n, d]`; on a CPU only their non-zero codes are worked on.

    Args:
        x: `[n, d]`.
        codes: of these rows.
        weight: of every row, `[n]`; 1 if None.
    """
    dense = codes.dense()
    left = dense if weight is None else dense * weight[:, None]
    if dense.device.type != "cpu":
        return Statistics(left.T @ dense / len(x), left.T @ x / len(x))
    atom, row = left.T.nonzero(as_tuple=True)
    values = left[row, atom] / len(x)
    counts = torch.bincount(atom, minlength=codes.n_atoms)
    starts = counts.cumsum(0) - counts

    def summed(rows: Tensor) -> Tensor:
        return nn.functional.embedding_bag(row, rows, starts, mode="sum", per_sample_weights=values)

    return Statistics(summed(dense), summed(x))


@torch.no_grad()
def block_pass(atoms: Tensor, known: Statistics, block: int) -> Tensor:
    """Return the atoms after one pass that lowers the mean error of all rows seen.

    The error is, up to a constant, `1/2 tr(A Phi Phi^T) - tr(B Phi^T)`. Blocks of atoms take
    turns, each with what those before have become (Mairal et al. 2010, Algorithm 2, where a block
    is one atom). Within a block the atoms move at once by

        (B - A Phi)_j / sum_{k in block} |A_jk|,

    the row sum in the place of `A_jj`: it bounds the curvature, so that no pass raises the error,
    whatever the block and the signs of the codes.
    Atoms that were never active stay.

    Args:
        atoms: `[m, d]`, unit rows.
        known: A and B.
        block: atoms that move at once.
    """
    result = atoms.clone()
    for first in range(0, len(atoms), block):
        rows = slice(first, first + block)
        bound = known.gram[rows, rows].abs().sum(1, keepdim=True)
        descent = torch.addmm(known.moment[rows], known.gram[rows], result, alpha=-1)
        moved = result[rows] + descent / bound.clamp_min(torch.finfo(bound.dtype).tiny)
        result[rows] = torch.where(bound > 0, nn.functional.normalize(moved, dim=1), result[rows])
    return result


class BlockCoordinate(DictionaryOptimizer):
    """Atoms that are best for all codes of a sliding window (Mairal et al. 2010, Algorithm 1).

        A <- (1 - g) A + g mean(a^T a),   B <- (1 - g) B + g mean(a^T x),   g = 1 / min(t, window)

    and then one `block_pass`. It needs memory for `[m, m]` numbers and time for `m^2 d`
    multiplications in a step: for small dictionaries and few vectors.

    Args:
        dictionary_parameters: the atoms `[m, d]` and, if there is one, the bias `[d]`.
        encoder_parameters: trained by Adam.
        lr: share of the way to the pass's result; 1 is the published algorithm.
        encoder_lr: Adam's rate, for the bias too.
        window: updates that the statistics are averaged over.
        block: atoms that move at once.
    """

    wants_codes = True

    def __init__(
        self,
        dictionary_parameters: Sequence[nn.Parameter],
        encoder_parameters: Sequence[nn.Parameter],
        lr: float,
        encoder_lr: float,
        window: int,
        block: int,
    ) -> None:
        super().__init__(dictionary_parameters, encoder_parameters, lr, encoder_lr)
        self.window, self.block = window, block
        self._observed: list[Statistics] = []

    def _bias_rate(self, lr: float, encoder_lr: float) -> float:
        return encoder_lr

    def observe_codes(self, x: Tensor, codes: Codes, weight: Tensor | None = None) -> None:
        """Take the rows of this process and their codes; those of accumulated batches add up."""
        self._observed.append(statistics(x.detach(), codes.detach(), weight))

    def forget_observed(self) -> None:
        """Drop the statistics of the coming step."""
        self._observed.clear()

    def _update(self) -> None:
        self._adam("bias", "encoder")
        if not self._observed:
            raise RuntimeError("observe_codes(x, codes) comes before every step of BlockCoordinate")
        known = self._average()
        best = block_pass(self.atoms, known, self.block)
        self.atoms.lerp_(best, self.param_groups[0]["lr"])
        to_sphere(self.atoms)

    def _average(self) -> Statistics:
        """Take the observed statistics of all processes in; return those of the window."""
        observed = zip(*self._observed, strict=True)
        fresh = [processes.mean(torch.stack(parts).mean(0)) for parts in observed]
        self._observed.clear()
        state = self.state[self.atoms]
        if not state:
            state["step"] = torch.zeros((), device=self.atoms.device)
            state["gram"], state["moment"] = (torch.zeros_like(part) for part in fresh)
        state["step"] += 1
        gain = 1 / state["step"].clamp_max(self.window)
        for name, part in zip(("gram", "moment"), fresh, strict=True):
            state[name].lerp_(part, gain.to(part))
        return Statistics(state["gram"], state["moment"])

    @torch.no_grad()
    def reset_atoms(self, indices: Tensor) -> None:
        """Forget some atoms: they were dead, or their statistics are a twin's by now."""
        super().reset_atoms(indices)
        state = self.state[self.atoms]
        if state:
            state["gram"][indices] = 0
            state["gram"][:, indices] = 0
            state["moment"][indices] = 0

    @torch.no_grad()
    def merge_atoms(self, kept: Tensor, gone: Tensor) -> None:
        """Add what was seen of twins, as if they had been one atom all the time."""
        state = self.state[self.atoms]
        if state:
            gram = state["gram"]
            gram.index_add_(0, kept, gram[gone])
            gram.index_add_(1, kept, gram[:, gone])
            state["moment"].index_add_(0, kept, state["moment"][gone])


@dataclass(frozen=True)
class Mairal:
    """Online dictionary learning of Mairal et al. 2010; see `BlockCoordinate`.

    Args:
        lr: share of the way to the best atoms of the window.
        window: updates that the statistics are averaged over.
        block: atoms that move at once.
        encoder_lr: Adam's rate for the encoder.
        warmup_vectors: see `lr_factor`.
        decay_fraction: see `lr_factor`.

    Raises:
        InputError: a number is out of its range.
    """

    lr: float = 1.0
    window: int = 300
    block: int = 32
    encoder_lr: float = 4e-3
    warmup_vectors: int = 0
    decay_fraction: float = 0.0

    @property
    def fixed_codes(self) -> bool:
        """True."""
        return True

    def __post_init__(self) -> None:
        check_rate("update.lr", self.lr)
        number("update.lr", self.lr, 0.0, 1.0)
        whole_number("update.window", self.window)
        whole_number("update.block", self.block)
        check_rate("update.encoder_lr", self.encoder_lr)
        check_schedule(self, "update")

    def in_phase(self, phase: int) -> Schedule:
        """Return itself."""
        return self

    def for_run(self, run: Run) -> Mairal:
        """Return itself."""
        return self

    def build(
        self,
        dictionary_parameters: Sequence[nn.Parameter],
        encoder_parameters: Sequence[nn.Parameter],
    ) -> BlockCoordinate:
        """Return the optimizer; see `UpdateRule.build`."""
        return BlockCoordinate(
            dictionary_parameters,
            encoder_parameters,
            self.lr,
            self.encoder_lr,
            window=self.window,
            block=self.block,
        )
