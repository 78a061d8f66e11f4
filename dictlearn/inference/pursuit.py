"""Greedy inference: non-negative codes with at most k atoms, chosen one after the other.

Legend: n rows, m atoms, d width, k codes kept per row, r = residual, c = r Phi^T.
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
from dictlearn.inference.pursuit_form import GramForm, ResidualForm, gram_fits, gram_pays
from dictlearn.inference.pursuit_rows import Pairs, gradient_rows, matching_rows, omp_rows
from dictlearn.inference.pursuit_support import LIMITS, Limits, as_floats

Array = NDArray[Any]
CACHED, FITTING, ON_GPU = 2**19, 2**24, 2**26
"""Correlations at a time: those of a step in Gram form stay in the cache of a CPU, the others
share the reading of all atoms, and a GPU has the memory to do more in one go."""


@torch.no_grad()
def omp(
    x: Tensor,
    atoms: Tensor,
    k: int,
    *,
    engine: str = "auto",
    atoms_per_step: int = 1,
    initial: Codes | None = None,
) -> Codes:
    """Non-negative orthogonal matching pursuit.

    Every step adds the atom with the largest correlation `c_j > 0` and solves the non-negative
    least squares on the atoms held; those whose codes become 0 are let go (Nguyen, Soussen,
    Idier & Djermoune 2019, "Non-negative orthogonal greedy algorithms", with their support
    compression). It ends with k positive codes, or where no atom correlates with the residual.

    Args:
        x: `[n, d]`.
        atoms: `[m, d]`, unit rows.
        k: codes kept per row.
        engine: `auto`, `torch` or `compiled`, which give the same codes up to rounding. Where
            the Gram matrix `[m, m]` does not fit into 1 GiB, torch always runs.
        atoms_per_step: more are faster and a little worse.
        initial: codes whose positive entries, the k largest, are the first support.

    Returns:
        k-sparse codes, with zeros where fewer atoms are of use.

    Raises:
        InputError: shapes, k or the engine do not fit.
    """
    per_step = whole_number("inference.atoms_per_step", atoms_per_step)
    x, atoms, limits = _checked(x, atoms, k)
    start = _start(initial, k, x)
    with torch.autocast(x.device.type, enabled=False):
        if _use_compiled(engine, x, atoms, k):
            from dictlearn.inference.compiled import pursuit

            begins = start.contiguous().numpy()
            values, indices = _compiled(
                x,
                atoms,
                k,
                lambda part, b, gram, *codes: pursuit.omp(
                    b, gram, begins[part], per_step, (limits.useful, limits.independent), *codes
                ),
            )
        else:
            gram = _gram(x, atoms, k)
            values, indices = _joined(
                [
                    omp_rows(_form(x[part], atoms, gram), k, per_step, start[part], limits)
                    for part in _parts(x, atoms, gram)
                ]
            )
    return _codes(values, indices, len(atoms))


@torch.no_grad()
def gradient_pursuit(x: Tensor, atoms: Tensor, k: int, *, engine: str = "auto") -> Codes:
    """Non-negative gradient pursuit (Blumensath & Davies 2008, "Gradient pursuits", sec. III).

    As `omp`, but instead of solving the least squares, every step goes once along the gradient
    `q` on the atoms held, by the best step size `|q|^2 / |q Phi|^2` or as far as all codes stay
    non-negative; codes that become 0 are let go.

    Args:
        x: `[n, d]`.
        atoms: `[m, d]`, unit rows.
        k: codes kept per row.
        engine: `auto`, `torch` or `compiled`; see `omp`.

    Raises:
        InputError: shapes, k or the engine do not fit.
    """
    x, atoms, limits = _checked(x, atoms, k)
    with torch.autocast(x.device.type, enabled=False):
        if _use_compiled(engine, x, atoms, k):
            from dictlearn.inference.compiled import pursuit

            values, indices = _compiled(
                x,
                atoms,
                k,
                lambda part, b, gram, *codes: pursuit.gradient_pursuit(
                    b, gram, limits.useful, *codes
                ),
            )
        else:
            gram = _gram(x, atoms, k)
            values, indices = _joined(
                [
                    gradient_rows(_form(x[part], atoms, gram), atoms, k, limits)
                    for part in _parts(x, atoms, gram)
                ]
            )
    return _codes(values, indices, len(atoms))


def matching_pursuit(x: Tensor, atoms: Tensor, k: int, *, engine: str = "auto") -> Codes:
    """Non-negative matching pursuit (Mallat & Zhang 1993): k steps of `r <- r - c_j phi_j`.

    `j` is the atom with the largest correlation `c_j > 0`; an atom chosen again adds to its code.

    Args:
        x: `[n, d]`.
        atoms: `[m, d]`, unit rows.
        k: steps, and codes kept per row.
        engine: `auto`, `torch` or `compiled`; see `omp`.

    Raises:
        InputError: shapes, k or the engine do not fit.
    """
    values, indices = matching_sequence(x, atoms, k, engine)
    return merged(values, indices, len(atoms))


@torch.no_grad()
def matching_sequence(x: Tensor, atoms: Tensor, k: int, engine: str = "auto") -> Pairs:
    """Return what every step of `matching_pursuit` took off, in order: values, atoms, `[n, k]`.

    An atom may occur more than once; steps after the last useful one have value 0 and atom 0.
    """
    x, atoms, limits = _checked(x, atoms, k)
    with torch.autocast(x.device.type, enabled=False):
        if _use_compiled(engine, x, atoms, k):
            from dictlearn.inference.compiled import pursuit

            values, indices = _compiled(
                x,
                atoms,
                k,
                lambda part, b, gram, *codes: pursuit.matching_pursuit(
                    b, gram, limits.useful, *codes
                ),
            )
            return values, indices.clamp_min_(0)
        gram = _gram(x, atoms, k)
        return _joined(
            [
                matching_rows(_form(x[part], atoms, gram), k, limits)
                for part in _parts(x, atoms, gram)
            ]
        )


def merged(values: Tensor, indices: Tensor, n_atoms: int) -> Codes:
    """Return codes of which every atom occurs once in a row; differentiable in the values.

    Args:
        values: `[n, k]`, summed where an atom occurs more than once.
        indices: int64 `[n, k]`.
        n_atoms: m.
    """
    same = indices[:, :, None] == indices[:, None, :]
    first = same.to(torch.int8).argmax(2)
    total = torch.zeros_like(values).scatter_add(1, first, values)
    slots = torch.arange(indices.shape[1], device=indices.device)
    return Codes(total, distinct(indices, first == slots, n_atoms), n_atoms)


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


def _checked(x: Tensor, atoms: Tensor, k: int) -> tuple[Tensor, Tensor, Limits]:
    """Return rows and atoms in one dtype of 32 bits or more, and what counts as zero in it."""
    whole_number("prox.k", k)
    x, atoms = as_floats(x, atoms)
    if k > len(atoms):
        raise InputError(f"prox.k={k} is more than the {len(atoms)} atoms: keep at most as many.")
    return x, atoms, LIMITS[x.dtype]


def _start(initial: Codes | None, k: int, x: Tensor) -> Tensor:
    """Return the atoms of the k largest positive codes, int64 `[n, s]`, -1 where there are fewer.

    They stand in front, the largest first.
    """
    if initial is None:
        return torch.zeros(len(x), 0, dtype=torch.int64, device=x.device)
    values, places = initial.values.topk(min(k, initial.values.shape[1]), dim=1)
    atoms = places if initial.indices is None else initial.indices.gather(1, places)
    return torch.where(values > 0, atoms, -1)


def _use_compiled(engine: str, x: Tensor, atoms: Tensor, k: int) -> bool:
    """Return whether the compiled loops run: they need the Gram matrix."""
    if not pick(engine, x) or not gram_fits(atoms):
        return False
    return engine == "compiled" or gram_pays(len(x), k, atoms)


def _compiled(x: Tensor, atoms: Tensor, k: int, work: Callable[..., None]) -> Pairs:
    """Return the codes that `work(rows, b, gram, values, indices)` writes, rows by rows."""
    from dictlearn.inference.compiled.threads import over_rows

    values, indices = x.new_zeros(len(x), k), torch.full((len(x), k), -1)
    codes, gram = (values.numpy(), indices.numpy()), (atoms @ atoms.T).numpy()
    for part in _split(len(x), FITTING // len(atoms)):
        b = (x[part] @ atoms.T).numpy()

        def some(begin: int, end: int, first: int = part.start, b: Array = b) -> None:
            rows = slice(first + begin, first + end)
            work(rows, b[begin:end], gram, codes[0][rows], codes[1][rows])

        over_rows(len(b), some)
    return values, indices


def _gram(x: Tensor, atoms: Tensor, k: int) -> Tensor | None:
    return atoms @ atoms.T if gram_pays(len(x), k, atoms) else None


def _form(x: Tensor, atoms: Tensor, gram: Tensor | None) -> GramForm | ResidualForm:
    return ResidualForm(x, atoms) if gram is None else GramForm(x @ atoms.T, gram)


def _parts(x: Tensor, atoms: Tensor, gram: Tensor | None) -> list[slice]:
    """Return the rows that are worked on in step."""
    size = ON_GPU if x.device.type != "cpu" else FITTING if gram is None else CACHED
    return _split(len(x), size // len(atoms))


def _split(n: int, size: int) -> list[slice]:
    """Return `n` rows in slices of a size; one, empty, if there are none."""
    size = max(1, size)
    return [slice(begin, min(n, begin + size)) for begin in range(0, max(1, n), size)]


def _joined(parts: list[Pairs]) -> Pairs:
    values, indices = zip(*parts, strict=True)
    return torch.cat(values), torch.cat(indices)


def _codes(values: Tensor, indices: Tensor, n_atoms: int) -> Codes:
    """Return codes with distinct indices; -1 marks an empty slot."""
    return Codes(values, distinct(indices, indices >= 0, n_atoms), n_atoms)
