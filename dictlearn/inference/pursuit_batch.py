"""What the pursuits share: checks, the choice between compiled loops and torch, parts of a batch.

Legend: n rows, m atoms, d width, k codes kept per row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.errors import InputError, whole_number
from dictlearn.inference.engine import pick
from dictlearn.inference.pursuit_form import Form, GramForm, ResidualForm, gram_fits, gram_pays
from dictlearn.inference.pursuit_support import LIMITS, Limits, as_floats

Array = NDArray[Any]
Pairs = tuple[Tensor, Tensor]
"""Values and their atoms, both `[n, k]`; atom -1 marks an empty slot."""
CACHED, FITTING, ON_GPU = 2**19, 2**24, 2**26
"""Correlations at a time: those of a step in Gram form stay in the cache of a CPU, the others
share the reading of all atoms, and a GPU has the memory to do more in one go."""


def checked(x: Tensor, atoms: Tensor, k: int) -> tuple[Tensor, Tensor, Limits]:
    """Return rows and atoms in one dtype of 32 bits or more, and what counts as zero in it.

    Raises:
        InputError: shapes or k do not fit.
    """
    whole_number("prox.k", k)
    x, atoms = as_floats(x, atoms)
    if k > len(atoms):
        raise InputError(f"prox.k={k} is more than the {len(atoms)} atoms: keep at most as many.")
    return x, atoms, LIMITS[x.dtype]


def first_support(initial: Codes | None, k: int, x: Tensor) -> Tensor:
    """Return the atoms of the k largest positive codes, int64 `[n, s]`, -1 where there are fewer.

    They stand in front, the largest first.
    """
    if initial is None:
        return torch.zeros(len(x), 0, dtype=torch.int64, device=x.device)
    values, places = initial.values.topk(min(k, initial.values.shape[1]), dim=1)
    atoms = places if initial.indices is None else initial.indices.gather(1, places)
    return torch.where(values > 0, atoms, -1).contiguous()


def pursue(
    x: Tensor,
    atoms: Tensor,
    k: int,
    engine: str,
    compiled: Callable[[slice, Array, Array, Array, Array], None],
    in_torch: Callable[[Form, slice], Pairs],
) -> Pairs:
    """Return the codes of all rows, by compiled loops or in torch.

    Args:
        x: `[n, d]`.
        atoms: `[m, d]`, unit rows.
        k: codes kept per row.
        engine: `auto`, `torch` or `compiled`.
        compiled: writes the codes of some rows; gets the rows, their `b = x Phi^T: [r, m]`, the
            Gram matrix `[m, m]`, and values (zeros) and indices (-1) to fill, `[r, k]`.
        in_torch: returns the codes of some rows.

    Raises:
        InputError: there is no such engine, or it cannot run here.
    """
    with torch.autocast(x.device.type, enabled=False):
        if _use_compiled(engine, x, atoms, k):
            return _compiled(x, atoms, k, compiled)
        gram = atoms @ atoms.T if gram_pays(len(x), k, atoms) else None
        parts = [in_torch(_form(x[part], atoms, gram), part) for part in _parts(x, atoms, gram, k)]
    values, indices = zip(*parts, strict=True)
    return torch.cat(values), torch.cat(indices)


def as_codes(pairs: Pairs, n_atoms: int) -> Codes:
    """Return codes with distinct indices; -1 marks an empty slot."""
    values, indices = pairs
    return Codes(values, distinct(indices, indices >= 0, n_atoms), n_atoms)


def distinct(indices: Tensor, taken: Tensor, n_atoms: int) -> Tensor:
    """Return the indices, in slots that are not taken replaced by atoms the row does not hold.

    Args:
        indices: int64 `[n, k]`, distinct where taken.
        taken: bool `[n, k]`.
        n_atoms: m, at least k.
    """
    k = indices.shape[1]
    among = min(n_atoms, 2 * k)  # of so many atoms, at least as many are free as are wanted
    free = torch.ones(len(indices), among + 1, dtype=torch.int8, device=indices.device)
    free.scatter_(1, torch.where(taken & (indices < among), indices, among), 0)
    spare = free[:, :among].argsort(dim=1, descending=True, stable=True)[:, :k]
    number = (~taken).cumsum(1) - 1
    return torch.where(taken, indices, spare.gather(1, number.clamp_min(0)))


def split(n: int, size: int) -> list[slice]:
    """Return `n` rows in slices of a size; one, empty, if there are none."""
    size = max(1, size)
    return [slice(begin, min(n, begin + size)) for begin in range(0, max(1, n), size)]


def _use_compiled(engine: str, x: Tensor, atoms: Tensor, k: int) -> bool:
    """Return whether the compiled loops run: they need the Gram matrix."""
    if not pick(engine, x) or not gram_fits(atoms):
        return False
    return engine == "compiled" or gram_pays(len(x), k, atoms)


def _compiled(
    x: Tensor, atoms: Tensor, k: int, work: Callable[[slice, Array, Array, Array, Array], None]
) -> Pairs:
    """Return the codes that `work` writes, rows by rows, on all threads."""
    from dictlearn.inference.compiled.threads import over_rows

    values, indices = x.new_zeros(len(x), k), torch.full((len(x), k), -1)
    codes, gram = (values.numpy(), indices.numpy()), (atoms @ atoms.T).numpy()
    for part in split(len(x), FITTING // len(atoms)):
        b = (x[part] @ atoms.T).numpy()

        def some(begin: int, end: int, first: int = part.start, b: Array = b) -> None:
            rows = slice(first + begin, first + end)
            work(rows, b[begin:end], gram, codes[0][rows], codes[1][rows])

        over_rows(len(b), some)
    return values, indices


def _form(x: Tensor, atoms: Tensor, gram: Tensor | None) -> Form:
    return ResidualForm(x, atoms) if gram is None else GramForm(x @ atoms.T, gram)


def _parts(x: Tensor, atoms: Tensor, gram: Tensor | None, k: int) -> list[slice]:
    """Return the rows that are worked on in step."""
    if x.device.type != "cpu":  # what k atoms have in common is as large
        return split(len(x), ON_GPU // max(len(atoms), k * k))
    return split(len(x), (FITTING if gram is None else CACHED) // len(atoms))
