"""Codes without shrinkage: the least squares on a support that another method has chosen.

Legend: n rows, m atoms, d width, K slots per row, H = inverse of the Gram matrix of the atoms
held, q = correlations of a row's atoms with its residual.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.inference.engine import pick
from dictlearn.inference.pursuit_support import LIMITS, Limits, Support, as_floats

CHUNK = 2**22
"""Numbers `n K (K + d)` at a time on a CPU."""


@torch.no_grad()
def refit(
    x: Tensor,
    codes: Codes,
    atoms: Tensor,
    *,
    engine: str = "auto",
    signed: bool | None = None,
) -> Codes:
    """Return the codes with the least error among those on the same support.

    `min_a 1/2 |x - a Phi|^2` over `a >= 0` that are 0 where the codes are 0: what l1 codes lose by
    shrinkage comes back. Codes may become 0, never new ones. Of atoms that depend on each other,
    as duplicates do, some become 0, and the reconstruction is the same.

    Args:
        x: `[n, d]`.
        codes: dense or k-sparse; the result has the same layout.
        atoms: `[m, d]`.
        engine: `auto`, `torch` or `compiled`, which agree up to rounding.
        signed: whether codes may be negative; if None, they may where any given one is.

    Returns:
        Codes without a gradient, in the dtype of the given ones.

    Raises:
        InputError: shapes or the engine do not fit.
    """
    rows, atoms = as_floats(x, atoms)
    values, indices = _pairs(codes)
    signed = bool((values < 0).any()) if signed is None else signed
    limits = LIMITS[rows.dtype]
    fitted = values.detach().to(rows.dtype).clone(memory_format=torch.contiguous_format)
    with torch.autocast(x.device.type, enabled=False):
        overwrite = _by_compiled_loops if pick(engine, x) else _in_torch
        overwrite(fitted, indices, rows, atoms, signed, limits)
    fitted = fitted.to(codes.values.dtype)
    if codes.indices is not None:
        return codes._replace(values=fitted)
    # Empty slots all point at atom 0 with value 0, and adding nothing changes nothing.
    return codes._replace(values=torch.zeros_like(codes.values).scatter_add(1, indices, fitted))


def _pairs(codes: Codes) -> tuple[Tensor, Tensor]:
    """Return values and atoms `[n, K]`; of dense codes the non-zero ones, then empty slots."""
    if codes.indices is not None:
        return codes.values, codes.indices
    row, atom = codes.values.nonzero(as_tuple=True)
    counts = row.bincount(minlength=len(codes.values))
    most = int(counts.max()) if len(counts) > 0 else 0
    slot = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    values = codes.values.new_zeros(len(codes.values), most)
    indices = torch.zeros(values.shape, dtype=torch.int64, device=row.device)
    values[row, slot], indices[row, slot] = codes.values[row, atom], atom
    return values, indices


def _by_compiled_loops(
    values: Tensor, indices: Tensor, x: Tensor, atoms: Tensor, signed: bool, limits: Limits
) -> None:
    """Overwrite the codes `values: [n, K]`, which are contiguous, on all threads."""
    from dictlearn.inference.compiled import refit as compiled
    from dictlearn.inference.compiled.threads import over_rows

    table = atoms.contiguous().numpy()
    arrays = [tensor.contiguous().numpy() for tensor in (x, indices, values)]
    tolerances = (limits.useful, limits.independent)

    def some(begin: int, end: int) -> None:
        """Overwrite the codes of some rows."""
        rows, chosen, fitted = (array[begin:end] for array in arrays)
        compiled.refit(rows, table, chosen, tolerances, signed, fitted)

    over_rows(len(x), some)


def _in_torch(
    values: Tensor, indices: Tensor, x: Tensor, atoms: Tensor, signed: bool, limits: Limits
) -> None:
    """Overwrite the codes `values: [n, K]`, as many rows at a time as `CHUNK` allows."""
    k = values.shape[1]
    per_row = max(1, k * (k + x.shape[1]))
    size = max(1, (CHUNK if x.device.type == "cpu" else 64 * CHUNK) // per_row)
    for begin in range(0, len(x), size):
        part = slice(begin, begin + size)
        values[part] = _refit_rows(x[part], values[part], atoms[indices[part]], signed, limits)


def _refit_rows(x: Tensor, values: Tensor, chosen: Tensor, signed: bool, limits: Limits) -> Tensor:
    """Return the refitted codes `[n, K]`.

    Args:
        x: `[n, d]`.
        values: the codes `[n, K]`.
        chosen: their atoms `[n, K, d]`.
        signed: whether codes may be negative.
        limits: what counts as zero.
    """
    wanted = values != 0
    chosen = chosen * wanted[:, :, None]
    form = LocalForm(x, chosen, chosen @ chosen.mT)
    support = _all_held(values, form, wanted, limits)
    q = form.correlations_at(support.values, support.indices)
    if signed:
        support.values.copy_(support.aim(q) * support.held)
    else:
        floor = limits.useful * x.norm(dim=1)
        support.fit(q, form, floor, limits.independent, wanted)
    q = form.correlations_at(support.values, support.indices)
    fitted = support.aim(q) * support.held
    fitted = fitted if signed else fitted.clamp_min(0)
    return torch.zeros_like(fitted).scatter_add(1, support.indices, fitted)


class LocalForm(NamedTuple):
    """The atoms of every row's support, by their slots in the codes.

    Attributes:
        x: `[n, d]`.
        chosen: atoms, `[n, K, d]`, zeros in empty slots.
        gram: their inner products `[n, K, K]`.
    """

    x: Tensor
    chosen: Tensor
    gram: Tensor

    def products(self, atom: Tensor, indices: Tensor) -> Tensor:
        """See `Products.products`."""
        row = self.gram.take_along_dim(atom[:, None, None], 1).squeeze(1)
        return row.gather(1, indices)

    def norms(self, atom: Tensor) -> Tensor:
        """See `Products.norms`."""
        return self.gram.diagonal(dim1=1, dim2=2).gather(1, atom[:, None]).squeeze(1)

    def correlations_at(self, values: Tensor, indices: Tensor) -> Tensor:
        """See `Products.correlations_at`."""
        codes = torch.zeros_like(values).scatter_add(1, indices, values)
        residual = self.x - (codes[:, None, :] @ self.chosen).squeeze(1)
        return (self.chosen @ residual[:, :, None]).squeeze(2).gather(1, indices)

    def rows(self, chosen: Tensor) -> Self:
        """See `Products.rows`."""
        return type(self)(*(tensor[chosen] for tensor in self))


def _all_held(values: Tensor, form: LocalForm, wanted: Tensor, limits: Limits) -> Support:
    """Return the rows holding all their atoms but those that depend on others.

    Most rows are done by one Cholesky factor, the others atom by atom.
    """
    n, k = values.shape
    norms = form.gram.diagonal(dim1=1, dim2=2)
    factor, failed = torch.linalg.cholesky_ex(form.gram + torch.diag_embed((~wanted).to(norms)))
    fresh = factor.diagonal(dim1=1, dim2=2).square() > limits.independent * norms
    regular = (failed == 0) & fresh.all(1)
    both = wanted[:, :, None] & wanted[:, None, :]
    places = torch.arange(k, device=values.device).expand(n, k).clone()
    safe = torch.where(regular[:, None, None], factor, torch.eye(k).to(factor))
    inverse = torch.where(both, torch.cholesky_inverse(safe), 0.0)
    support = Support(values * wanted, places, wanted.clone(), inverse)
    rows = (~regular).nonzero().squeeze(1)
    if len(rows) > 0:
        part, local = Support.empty(len(rows), k, values), form.rows(rows)
        part.indices.copy_(places[rows])
        for t in range(k):
            slot = torch.full_like(rows, t)
            added = part.insert(slot, slot, local, wanted[rows, t], limits.independent)
            part.values[:, t] = torch.where(added, values[rows, t], 0.0)
        support.put(rows, part)
    return support
