"""The working-set solver on a CPU: screening by matrix products, small problems in machine code.

Imported only where numba is. Legend: n rows, m atoms, d width, s places of a working set.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.inference.compiled import screening
from dictlearn.inference.compiled.problem import Problem, Sets, pack
from dictlearn.inference.engine import has_fast_bfloat16, use_threads
from dictlearn.inference.working_set_codes import PATIENCE, Attempt, rows_of, support_of
from dictlearn.prox import Penalty

GROW = 24
"""Atoms added to a working set in a round; 16 to 32 measured alike."""
CHUNK, PLACES = 128, 160
"""Rows whose Gram matrices fit the cache together, and the places that they have at least."""
COARSE = 2.0**-7
"""Bound of the error of a product of unit rows in bfloat16, whose unit roundoff is 2^-8."""

Array = NDArray[Any]


def run(
    x: Tensor,
    atoms: Tensor,
    penalty: Penalty,
    initial: Codes | None,
    gram: Tensor | None,
    tolerance: float,
    max_rounds: int,
) -> Attempt:
    """Solve one convex problem; see `solve`. All tensors are on the CPU and of one dtype."""
    x, atoms = x.contiguous(), atoms.contiguous()
    coarse = has_fast_bfloat16(x)
    screen = atoms.bfloat16() if coarse else atoms
    done, left, most, room = [], [], 0, np.empty((CHUNK, PLACES, PLACES), x.numpy().dtype)
    for first in range(0, len(x), CHUNK):
        part = slice(first, first + CHUNK)
        problem = _problem(x[part], atoms, penalty, gram, part)
        start = None if initial is None else rows_of(initial, part)
        sets = _sets(x[part], start, penalty, room)
        sets, stuck, rounds = _solve(problem, sets, screen, tolerance, max_rounds)
        if len(sets.gram) == CHUNK:
            room = sets.gram
        done.append(sets._replace(gram=problem.gram[:0]))
        left.append(torch.from_numpy(stuck))
        most = max(most, rounds)
    codes, gap = _packed(done, x, len(atoms))
    return Attempt(codes, gap, most, torch.cat(left) if left else gap.bool())


def _packed(done: list[Sets], x: Tensor, m: int) -> tuple[Codes, Tensor]:
    """Return codes and gaps of all chunks; the codes are as wide as the row with most of them."""
    k = max((int((sets.codes != 0).sum(1).max()) for sets in done), default=1)
    values, indices = x.new_empty(len(x), max(k, 1)), torch.empty(len(x), max(k, 1)).long()
    for first, sets in enumerate(done):
        part = slice(first * CHUNK, first * CHUNK + CHUNK)
        pack(sets, m, values[part].numpy(), indices[part].numpy())
    gap = torch.from_numpy(np.concatenate([sets.gap for sets in done])) if done else x[:, 0]
    return Codes(values, indices, m), gap


def _problem(
    x: Tensor, atoms: Tensor, penalty: Penalty, gram: Tensor | None, part: slice
) -> Problem:
    """Return arrays: a price for every row, and weights where atoms differ."""
    dtype = x.numpy().dtype
    n, m = len(x), len(atoms)
    price = penalty.price.to(x)
    price = price if len(price) == 1 else price[part]
    if price.shape[1] == 1:
        rows, weights = price[:, 0].expand(n), x.new_ones(1, m)
    else:
        rows, weights = x.new_ones(n), price
    weights = weights.contiguous()
    none = np.zeros((1, 1), dtype)
    return Problem(
        x.numpy(),
        atoms.numpy(),
        none if gram is None else gram.to(x).contiguous().numpy(),
        rows.contiguous().numpy(),
        weights.numpy(),
        (1 / weights).numpy(),
        dtype.type(penalty.ridge),
        penalty.signed,
    )


def _sets(x: Tensor, initial: Codes | None, penalty: Penalty, room: Any) -> Sets:
    """Return working sets: empty ones, or the supports of the codes to start from.

    `room` is memory for Gram matrices, used again because fresh pages are dear.
    """
    n, dtype = len(x), x.numpy().dtype
    k = 0
    if initial is not None:
        values, indices = support_of(initial, penalty.signed)
        k = values.shape[1]
    s = room.shape[1] if k + GROW <= room.shape[1] else _room(k + GROW)
    sets = Sets(
        np.zeros((n, s), np.int64),
        np.zeros((n, s), dtype),
        np.zeros((n, s), dtype),
        room[:n] if s == room.shape[1] else np.empty((n, s, s), dtype),
        np.zeros(n, np.int64),
        np.zeros(n, np.int64),
        np.full(n, np.inf, dtype),
    )
    if k > 0:
        sets.atoms[:, :k] = indices.numpy()
        sets.codes[:, :k] = values.to(x).numpy()
        sets.size[:] = (values != 0).sum(1).numpy()
    return sets


def _solve(
    problem: Problem, sets: Sets, screen: Tensor, tolerance: float, max_rounds: int
) -> tuple[Sets, Array, int]:
    """Take rounds with the rows of a chunk until all have left.

    Returns:
        Where the rows ended, which were left stuck, and the rounds.
    """
    dtype = problem.x.dtype
    coarse = screen.dtype == torch.bfloat16
    atoms = torch.from_numpy(problem.atoms)
    loop = screening.advance
    if torch.get_num_threads() > 1:
        use_threads()
        loop = screening.advance_in_parallel
    rows = np.arange(len(problem.x))
    r = _residual(problem, sets)
    stuck, before = np.zeros(len(rows), np.bool_), sets.gap.copy()
    rounds = 0
    while True:
        # The last look only measures the gap, so that it is that of the codes returned.
        last = rounds == max_rounds
        rough = coarse and not last
        if rough:
            c = (torch.from_numpy(r).bfloat16() @ screen.T).view(torch.int16)
        else:
            c = torch.from_numpy(r) @ atoms.T
        most = int(sets.size[rows].max())
        grow = max(GROW, most // 2)
        if most + GROW <= PLACES:  # wider sets would have to be copied
            grow = min(grow, PLACES - most)
        sets = _with_room(sets, most + grow)
        loop(
            rows,
            c.numpy(),
            r,
            problem,
            sets,
            grow,
            dtype.type(COARSE if rough else 0),
            dtype.type(tolerance),
            last,
        )
        stay = sets.gap[rows] > tolerance
        if rounds > 0 and rounds % PATIENCE == 0 and dtype == np.float32 and not last:
            stuck[rows] = stay & (sets.gap[rows] > before[rows] / 2)
            stay, before = stay & ~stuck[rows], sets.gap.copy()
        rows, r = rows[stay], r[stay]
        if last or len(rows) == 0:
            break
        rounds += 1
    return sets, stuck, rounds


def _residual(problem: Problem, sets: Sets) -> Any:
    if not sets.size.any():
        return problem.x.copy()
    chosen, codes = torch.from_numpy(sets.atoms), torch.from_numpy(sets.codes)
    decoded = torch.nn.functional.embedding_bag(
        chosen, torch.from_numpy(problem.atoms), per_sample_weights=codes, mode="sum"
    )
    left: Array = problem.x - decoded.numpy()
    return left


def _room(wanted: int) -> int:
    return max(PLACES, -(-wanted // 32) * 32)


def _with_room(sets: Sets, wanted: int) -> Sets:
    """Return the sets with `wanted` places at least."""
    n, s = sets.atoms.shape
    if wanted <= s:
        return sets
    more = _room(wanted + GROW)
    larger = {
        name: np.zeros((n, more), getattr(sets, name).dtype) for name in ("atoms", "codes", "q")
    }
    for name, places in larger.items():
        places[:, :s] = getattr(sets, name)
    gram = np.empty((n, more, more), sets.gram.dtype)
    gram[:, :s, :s] = sets.gram
    return sets._replace(**larger, gram=gram)
