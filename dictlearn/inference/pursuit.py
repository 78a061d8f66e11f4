"""Greedy inference: non-negative codes with at most k atoms, chosen one after the other.

Legend: n rows, m atoms, d width, k codes kept per row, r = residual, c = r Phi^T.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.errors import whole_number
from dictlearn.inference.pursuit_batch import (
    Array,
    Pairs,
    as_codes,
    checked,
    distinct,
    first_support,
    pursue,
)
from dictlearn.inference.pursuit_rows import gradient_rows, matching_rows, omp_rows


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
    x, atoms, limits = checked(x, atoms, k)
    start = first_support(initial, k, x)

    def compiled(rows: slice, b: Array, gram: Array, values: Array, indices: Array) -> None:
        """Fill the values and indices of some rows; see `pursue`."""
        from dictlearn.inference.compiled import pursuit

        pursuit.omp(
            b,
            gram,
            start[rows].numpy(),
            per_step,
            (limits.useful, limits.independent),
            values,
            indices,
        )

    pairs = pursue(
        x,
        atoms,
        k,
        engine,
        compiled,
        lambda form, rows: omp_rows(form, k, per_step, start[rows], limits),
    )
    return as_codes(pairs, len(atoms))


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

    Returns:
        k-sparse codes, with zeros where fewer atoms are of use.

    Raises:
        InputError: shapes, k or the engine do not fit.
    """
    x, atoms, limits = checked(x, atoms, k)

    def compiled(_: slice, b: Array, gram: Array, values: Array, indices: Array) -> None:
        """Fill the values and indices of some rows; see `pursue`."""
        from dictlearn.inference.compiled import gradient

        gradient.gradient_pursuit(b, gram, limits.useful, values, indices)

    pairs = pursue(
        x, atoms, k, engine, compiled, lambda form, _: gradient_rows(form, atoms, k, limits)
    )
    return as_codes(pairs, len(atoms))


def matching_pursuit(x: Tensor, atoms: Tensor, k: int, *, engine: str = "auto") -> Codes:
    """Non-negative matching pursuit (Mallat & Zhang 1993): k steps of `r <- r - c_j phi_j`.

    `j` is the atom with the largest correlation `c_j > 0`; an atom chosen again adds to its code.

    Args:
        x: `[n, d]`.
        atoms: `[m, d]`, unit rows.
        k: steps, and codes kept per row.
        engine: `auto`, `torch` or `compiled`; see `omp`.

    Returns:
        k-sparse codes, with zeros where fewer atoms are of use.

    Raises:
        InputError: shapes, k or the engine do not fit.
    """
    values, indices = matching_sequence(x, atoms, k, engine)
    return merged(values, indices, len(atoms))


@torch.no_grad()
def matching_sequence(x: Tensor, atoms: Tensor, k: int, engine: str = "auto") -> Pairs:
    """Return what every step of `matching_pursuit` took off, in order: values, atoms, `[n, k]`.

    An atom may occur more than once; steps after the last useful one have value 0 and atom 0.
    Arguments and errors are those of `matching_pursuit`.
    """
    x, atoms, limits = checked(x, atoms, k)

    def compiled(_: slice, b: Array, gram: Array, values: Array, indices: Array) -> None:
        """Fill the values and indices of some rows; see `pursue`."""
        from dictlearn.inference.compiled import pursuit

        pursuit.matching_pursuit(b, gram, limits.useful, values, indices)

    values, indices = pursue(
        x, atoms, k, engine, compiled, lambda form, _: matching_rows(form, k, limits)
    )
    return values, indices.clamp_min_(0)


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
