"""The recipe that measured best: an amortised start, exact codes, then the codes of one's choice.

Legend: n rows, m atoms, d width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dictlearn import processes
from dictlearn.codes import Codes
from dictlearn.dictionary import Dictionary
from dictlearn.errors import InputError, choice, number, whole_number
from dictlearn.inference.driver import Solution
from dictlearn.inference.interface import Inference
from dictlearn.inference.objective import objective
from dictlearn.inference.price import Price, over_processes, sample_of_all
from dictlearn.inference.working_set import WorkingSet, price_for_l0
from dictlearn.prox import BatchTopK, Prox, Soft, TopK

SAMPLE = 1024
"""Rows by which the first price of exact codes is found: they give their L0 to about 1 %."""


class TwoPhase(Inference):
    """Learn the dictionary with a learned encoder first and with exact l1 codes then.

    Exact codes from a random start end in local minima in which atoms are missed or doubled; a
    short amortised phase removes them, and exact codes then give the better dictionary. The last
    part of the run fits it to the codes it will be used with. The encoder goes on learning on
    the moving dictionary beside, so that a run leaves both a faithful and a fast code.

    With a convex sparsity all three work on the same problem. With topk or batch_topk the exact
    codes are those of the l1 problem, and lambda is steered so that they have `l0_factor * prox.k`
    codes a row on average. With `encoder_share=0` this is alternating minimisation; with
    `update=frozen` it distils an encoder for a dictionary that is given.

    Args:
        encoder: learned, with `prox`: alone in the first phase, trained along in the second.
        solver: exact codes of the second phase.
        use: codes after training, with `prox`: a pursuit, the solver, or an encoder's.
        encoder_share: share of the run that the first phase takes.
        use_share: share of the run, at its end, in which the codes of `use` move the atoms.
        l0_factor: exact codes a row for every code that is kept in the end. l1 shrinks codes, and
            some more of them give better atoms for every L0 than as many as will be kept.
        distil: what the encoder learns in the second phase: `objective` (to lower its own
            objective on the atoms as they are), `codes` (to come close to the exact codes), or
            `none` (nothing; it is not run either).
        distil_every: of so many rows of a batch one is the encoder's lesson.

    Raises:
        InputError: an option is out of its range, or the sparsity is neither convex nor counted.
    """

    differentiable = True
    in_second: Tensor

    def __init__(
        self,
        encoder: Inference,
        solver: WorkingSet,
        use: Inference,
        encoder_share: float = 0.15,
        use_share: float = 0.2,
        l0_factor: float = 2.0,
        distil: str = "objective",
        distil_every: int = 1,
    ) -> None:
        super().__init__()
        self.encoder, self.solver, self.use = encoder, solver, use
        self.encoder_share = number("inference.encoder_share", encoder_share, 0.0, 1.0)
        self.use_share = number("inference.use_share", use_share, 0.0, 1.0)
        if self.encoder_share + self.use_share > 1:
            raise InputError(
                f"inference.encoder_share={encoder_share} and inference.use_share={use_share} are "
                "more than the whole run: lower one of them."
            )
        if self.use_share and use.differentiable:
            raise InputError(
                "inference.use is learned, and its codes cannot move the atoms as exact ones do: "
                "set inference.use_share=0."
            )
        self.l0_factor = number("inference.l0_factor", l0_factor, minimum=0.1)
        self.distil = choice("inference.distil", distil, ("objective", "codes", "none"))
        self.distil_every = whole_number("inference.distil_every", distil_every)
        self.price: Price | None = None
        self.exact = self.last = False
        self._unpriced = False

    @property
    def learned(self) -> Inference | None:
        """The encoder, unless it is left behind after the first phase."""
        return None if self.distil == "none" and bool(self.in_second) else self.encoder

    @property
    def boundaries(self) -> tuple[float, ...]:
        """Where the exact phase begins."""
        return (self.encoder_share,) if 0 < self.encoder_share < 1 else ()

    def build(self, dictionary: Dictionary, prox: Prox) -> None:
        """Build all three; see `Inference.build`."""
        if isinstance(prox, BatchTopK) and not self.use_share:
            raise InputError(
                "inference.use_share=0 leaves no step in which the price of a code is found that "
                "gives prox.k codes on average: choose prox=topk, or a share of the run."
            )
        if isinstance(prox, TopK | BatchTopK):
            wanted = min(self.l0_factor * prox.k, dictionary.n_atoms / 2)
            self.price = Price(0.1, wanted)
        elif not prox.convex or not self.use.needs_price:
            raise InputError(
                f"inference=two_phase ends with a pursuit that keeps prox.k atoms, and prox="
                f"{type(prox).__name__.lower()} has no k: choose prox=topk or batch_topk, or "
                "inference=unrolled update=adam, or for a convex prox inference=alternating."
            )
        self.register_buffer("in_second", torch.tensor(False))
        self.encoder.build(dictionary, prox)
        self.solver.build(dictionary, Soft(0.1) if self.price else prox)
        self.use.build(dictionary, prox)

    def reset(self, dictionary: Dictionary) -> None:
        """Start all three anew."""
        for part in (self.encoder, self.solver, self.use):
            part.reset(dictionary)

    def forget_prices(self) -> None:
        """Find the price of exact codes anew, too; see `Inference.forget_prices`."""
        super().forget_prices()
        self.exact = self._unpriced = bool(self.in_second)

    def reset_atoms(self, dictionary: Dictionary, indices: Tensor) -> None:
        """Start some atoms anew in all three."""
        for part in (self.encoder, self.solver, self.use):
            part.reset_atoms(dictionary, indices)

    def advance(self, fraction: float) -> None:
        """Go over to exact codes when the encoder's share of the run is done."""
        self.encoder.advance(fraction)
        if self.exact != (fraction >= self.encoder_share):
            self.exact = not self.exact
            self._unpriced = self.exact and not bool(self.in_second)
            self.in_second.fill_(self.exact)
        self.last = fraction >= 1 - self.use_share

    def observe(self, l0: Tensor) -> None:
        """Steer lambda while the codes are exact."""
        if not self.exact:
            self.encoder.observe(l0)
        elif self.last:
            self.use.observe(l0)
        elif self.price is not None:
            self.price.observe(l0)

    def forward(
        self,
        x: Tensor,
        atoms: Tensor,
        prox: Prox,
        initial: Codes | None = None,
        certify: bool = False,
    ) -> Solution:
        """Return the codes of the phase, or the ones to use; see `Inference.forward`."""
        if not self.training:
            part = self.use if bool(self.in_second) else self.encoder
            return part(x, atoms, prox, initial, certify)  # type: ignore[no-any-return]
        if not self.exact:
            return self.encoder(x, atoms, prox, initial)  # type: ignore[no-any-return]
        x, atoms = x.detach(), atoms.detach()
        # From zero: to start from an encoder's codes took a solver 1.1 to 1.2 times as long, for
        # the Gram matrices of the atoms that it has to drop again.
        solution = self._exact(x, atoms, prox)
        return solution._replace(extra_loss=self._lesson(x, atoms, prox, solution.codes))

    def _lesson(self, x: Tensor, atoms: Tensor, prox: Prox, exact: Codes) -> Tensor:
        """Return what the encoder lowers in the second phase, `[n]`."""
        if self.distil == "none":
            return x.new_zeros(len(x)) + processes.slope_zero(self.encoder)
        every, before = self.distil_every, processes.rank() * len(x)
        taught = torch.arange(min(-before % every, len(x) - 1), len(x), every, device=x.device)
        some, prox = x[taught], _of_rows(prox, taught)
        learned: Solution = self.encoder(some, atoms, prox)
        if self.distil == "codes":
            lesson = 0.5 * (learned.codes.dense() - exact.dense()[taught]).square().sum(-1)
        else:
            lesson = objective(some, learned.codes, atoms, prox)
        if learned.extra_loss is not None:
            lesson = lesson + learned.extra_loss
        # The mean over the rows of all processes stays what it would be if all were taught.
        rows = len(x) * processes.world_size()
        share = rows / len(range(0, rows, every))
        return x.new_zeros(len(x)).index_copy(0, taught, share * lesson)

    def _exact(self, x: Tensor, atoms: Tensor, prox: Prox) -> Solution:
        if self.last:
            return self.use(x, atoms, prox)  # type: ignore[no-any-return]
        if self.price is None:
            return self.solver(x, atoms, prox)  # type: ignore[no-any-return]
        if self._unpriced:
            some = sample_of_all(x, SAMPLE)
            found = price_for_l0(some, atoms, self.price.target_l0, Soft(0.1))
            self.price.lambda_.fill_(over_processes(found, x.device))
            self._unpriced = False
        priced = Soft(0.1).priced(self.price.lambda_)
        return self.solver(x, atoms, priced)  # type: ignore[no-any-return]


def _of_rows(prox: Prox, chosen: Tensor) -> Prox:
    """Return the sparsity of some rows, which may have prices of their own."""
    price = prox.lambda_
    if isinstance(price, Tensor) and price.dim() > 0 and len(price) > 1:
        return prox.priced(price[chosen])
    return prox
