"""Least squares on growing and shrinking sets of atoms, a batch of rows at once.

The twin of `compiled.active_set` in plain torch: slots instead of a compact set.

Legend: n rows, k slots per row, H = inverse of the Gram matrix of the atoms held (0 elsewhere),
q = correlations of the atoms held with the residual.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

from dictlearn.errors import InputError


class Limits(NamedTuple):
    """What counts as zero in a dtype.

    Attributes:
        useful: smallest correlation worth an atom, as a share of the largest one.
        independent: smallest share of an atom's energy outside the span of the atoms held.
    """

    useful: float
    independent: float


LIMITS = {torch.float32: Limits(4e-6, 1e-5), torch.float64: Limits(1e-14, 1e-11)}


def as_floats(x: Tensor, atoms: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows and atoms without a gradient, both in the wider dtype, of at least 32 bits.

    Raises:
        InputError: they are not `[n, d]` and `[m, d]`.
    """
    if x.ndim != 2 or atoms.ndim != 2 or x.shape[1] != atoms.shape[1]:
        raise InputError(
            f"x has shape {list(x.shape)} and the atoms {list(atoms.shape)}: [n, d] rows need "
            "[m, d] atoms. Is one of them transposed?"
        )
    wide = torch.float64 in (x.dtype, atoms.dtype)
    dtype = torch.float64 if wide else torch.float32
    return x.detach().to(dtype), atoms.detach().to(dtype)


class Products(Protocol):
    """What a support must know of its atoms."""

    def products(self, atom: Tensor, indices: Tensor) -> Tensor:
        """Return `<phi_atom, phi_indices>`: `[n, k]` for atoms `[n]` and `[n, k]`."""

    def norms(self, atom: Tensor) -> Tensor:
        """Return `|phi_atom|^2` for atoms `[n]`."""

    def correlations_at(self, values: Tensor, indices: Tensor) -> Tensor:
        """Return `<phi, x - a Phi>` of the atoms of codes `[n, k]`."""

    def rows(self, chosen: Tensor) -> Self:
        """Return the same for the rows with these numbers."""


class Support(NamedTuple):
    """The atoms that rows hold; methods change the tensors in place.

    Attributes:
        values: codes `[n, k]`, positive where a slot is in use (of non-negative codes), else 0.
        indices: atoms, int64 `[n, k]`.
        held: whether a slot is in use, bool `[n, k]`.
        inverse: `[n, k, k]`.
    """

    values: Tensor
    indices: Tensor
    held: Tensor
    inverse: Tensor

    @classmethod
    def empty(cls, n: int, k: int, like: Tensor) -> Self:
        """Return rows that hold nothing."""
        indices = torch.zeros(n, k, dtype=torch.int64, device=like.device)
        return cls(like.new_zeros(n, k), indices, indices.to(torch.bool), like.new_zeros(n, k, k))

    def rows(self, chosen: Tensor) -> Self:
        """Return copies of the rows with these numbers."""
        return type(self)(*(tensor[chosen] for tensor in self))

    def first(self, width: int) -> Self:
        """Return the first slots of every row, in the same memory."""
        return type(self)(
            self.values[:, :width],
            self.indices[:, :width],
            self.held[:, :width],
            self.inverse[:, :width, :width],
        )

    def put(self, chosen: Tensor, rows: Self) -> None:
        """Write rows back to these numbers."""
        for tensor, part in zip(self, rows, strict=True):
            tensor[chosen] = part

    def first_free(self) -> Tensor:
        """Return the first slot that is not in use, or 0, int64 `[n]`."""
        return self.held.to(torch.int8).argmin(1)

    def insert(
        self,
        slot: Tensor,
        atom: Tensor,
        form: Products,
        wanted: Tensor,
        tolerance: float,
    ) -> Tensor:
        """Add an atom to every row that wants one, has the slot free and does not span it.

        With `g` its inner products with the atoms held, `h = H g` and the Schur complement
        `s = |phi|^2 - g h`, the inverse grows by `(h, -1) (h, -1)^T / s`.

        Args:
            slot: int64 `[n]`.
            atom: int64 `[n]`.
            form: knows the inner products of atoms.
            wanted: bool `[n]`.
            tolerance: smallest share of `|phi|^2` that must be new.

        Returns:
            Which rows hold it now, bool `[n]`.
        """
        g = form.products(atom, self.indices) * self.held
        norms = form.norms(atom)
        h = (self.inverse * g[:, None, :]).sum(-1)
        schur = norms - (g * h).sum(-1)
        place = slot[:, None]
        taken = self.held.gather(1, place).squeeze(1)
        added = wanted & ~taken & (schur > tolerance * norms)
        # Rows that add nothing divide by infinity: their inverse stays as it is, without a mask.
        schur = torch.where(added, schur, torch.inf)
        h.scatter_(1, place, -1.0)  # it is 0 in a free slot
        self.inverse.addcmul_((h / schur[:, None])[:, :, None], h[:, None, :])
        before = self.indices.gather(1, place).squeeze(1)
        self.indices.scatter_(1, place, torch.where(added, atom, before)[:, None])
        self.held.scatter_(1, place, (added | taken)[:, None])
        return added

    def aim(self, q: Tensor) -> Tensor:
        """Return the least-squares codes `a + H q`, `[n, k]`: one Newton step, and exact."""
        return self.values + (self.inverse * (q * self.held)[:, None, :]).sum(-1)

    def fit(
        self,
        q: Tensor,
        form: Products,
        floor: Tensor,
        tolerance: float,
        wanted: Tensor | None = None,
    ) -> None:
        """Solve the non-negative least squares on the atoms held (Lawson & Hanson 1974, ch. 23).

        Few rows drop any atom, and that is worth one look: those are worked on alone, and the
        dropped atoms come back where they would lower the error.

        Args:
            q: correlations of the atoms held with the residual, `[n, k]`.
            form: knows the inner products of atoms, and such correlations.
            floor: smallest correlation that brings an atom back, `[n]`.
            tolerance: see `insert`.
            wanted: slots whose atoms may be held, bool `[n, k]`; those held if None.
        """
        target = self.aim(q)
        blocked = ((target <= 0) & self.held).any(1)
        if wanted is not None:
            blocked |= (wanted & ~self.held).any(1)
        if not blocked.any():
            self.values.copy_(target)
            return
        rows = blocked.nonzero().squeeze(1)
        part, form, floor = self.rows(rows), form.rows(rows), floor[rows]
        out = part.held.clone() if wanted is None else wanted[rows]
        part.settle(target[rows])
        for _ in range(3 * out.shape[1]):
            q = form.correlations_at(part.values, part.indices)
            value, slot = q.masked_fill(part.held | ~out, -torch.inf).max(1)
            useful = value > floor
            if not useful.any():
                break
            place = slot[:, None]
            atom = part.indices.gather(1, place).squeeze(1)
            added = part.insert(slot, atom, form, useful, tolerance)
            out.scatter_(1, place, (added | ~useful)[:, None] & out.gather(1, place))
            part.settle(part.aim(q))
        self.values.copy_(target)
        self.put(rows, part)

    def settle(self, goal: Tensor) -> None:
        """Move `a >= 0` to the least-squares codes; drop the atoms that would turn negative.

        Go as far as all codes stay non-negative, drop the one that became zero, aim anew.

        Args:
            goal: the least-squares codes `[n, k]`, overwritten.
        """
        while True:
            against = (goal <= 0) & self.held
            stuck = against.any(1)
            if not stuck.any():
                break
            self.drop_first_blocked(goal, against, stuck)
        self.values.copy_(goal)

    def drop_first_blocked(self, goal: Tensor, against: Tensor, stuck: Tensor) -> None:
        """Go towards the goal up to the first code that becomes 0, and drop its atom.

        Args:
            goal: least-squares codes `[n, k]`; becomes that of the atoms left.
            against: where the goal is not positive, bool `[n, k]`.
            stuck: which rows have such a place, bool `[n]`.
        """
        ratio = self.values / (self.values - goal)
        ratio = torch.where(self.values > 0, ratio, 0.0).masked_fill(~against, torch.inf)
        share, slot = ratio.min(1)
        share = torch.where(stuck, share, 0.0)
        self.values.add_(share[:, None] * (goal - self.values))
        self.drop(slot, goal, stuck)

    def drop(self, slot: Tensor, goal: Tensor, wanted: Tensor) -> None:
        """Let go of one atom in the rows that want it.

        Args:
            slot: int64 `[n]`, in use where wanted.
            goal: least-squares codes `[n, k]`; becomes that of the atoms left.
            wanted: bool `[n]`.
        """
        place = slot[:, None]
        column = self.inverse.gather(1, place[:, :, None].expand_as(self.inverse[:, :1])).squeeze(1)
        pivot = column.gather(1, place).squeeze(1)
        weight = torch.where(wanted, 1 / pivot, 0.0)[:, None]
        goal.sub_(column * (goal.gather(1, place) * weight))
        self.inverse.addcmul_((column * weight)[:, :, None], column[:, None, :], value=-1)
        gone = torch.zeros_like(self.held).scatter_(1, place, wanted[:, None])
        self.held.logical_and_(~gone)
        self.values.masked_fill_(gone, 0.0)
        goal.masked_fill_(gone, 0.0)
        # Rounding must not leave a trace of the atom.
        self.inverse.masked_fill_(gone[:, :, None] | gone[:, None, :], 0.0)
