"""The working-set solver in plain torch: all rows at once, on any device.

Legend: n rows of a chunk, m atoms, d width, s places of a working set; c correlations of all
atoms with the residual, q those of the working set, h its Gram matrix, p its prices, a its codes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.inference.engine import has_fast_bfloat16
from dictlearn.inference.objective import gap_of
from dictlearn.inference.working_set_codes import (
    PATIENCE,
    Attempt,
    put_together,
    rows_of,
    support_of,
)
from dictlearn.kernels import reconstruct, top_indices
from dictlearn.prox import Penalty
from dictlearn.prox.penalty import shrunk

GROW = 16
"""Atoms added to a working set in a round."""
EASY = 6
"""Rounds after which rows count as hard: the steps on their small problems double every round."""
DESCENT, NEWTON = 12, 3
"""Accelerated steps, which find the support, and Newton steps, which solve it, in a round."""


class Local(NamedTuple):
    """The small problems of a batch: minimise `1/2 a h a - (q + h a_0) a + p |a|` near `a_0`.

    Attributes:
        gram: h, `[n, s, s]`, with the ridge on its diagonal.
        price: p, `[n, s]` or `[n, 1]`.
        signed: whether codes may be negative.
    """

    gram: Tensor
    price: Tensor
    signed: bool

    def rows(self, keep: Tensor) -> Local:
        """Return some of the problems."""
        price = self.price if len(self.price) == 1 else self.price[keep]
        return self._replace(gram=self.gram[keep], price=price)


CHUNK, BATCH = 512, 128
"""Rows on a CPU whose small problems are solved together: their matrices stay in the cache."""
COARSE = 2
"""First rounds that look in bfloat16, where that is fast: they only choose atoms."""


def run(
    x: Tensor,
    atoms: Tensor,
    penalty: Penalty,
    initial: Codes | None,
    gram: Tensor | None,
    tolerance: float,
    max_rounds: int,
) -> Attempt:
    """Solve one convex problem; see `solve`. All tensors are on one device and of one dtype."""
    # On a CPU the Gram matrices of a chunk stay in the cache; a GPU wants all rows at once.
    size = CHUNK if x.device.type == "cpu" else max(256, 2**28 // (128 * x.shape[1]))
    # The places of a chunk are those of its fullest row, and long rows have most codes.
    order = torch.linalg.vector_norm(x, dim=1).argsort()
    gap, stuck = x.new_empty(len(x)), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    parts, most = [], 0
    for rows in torch.split(order, size) if len(x) > 0 else ():
        start = None if initial is None else rows_of(initial, rows)
        part = _solve(x[rows], atoms, penalty.rows(rows), start, gram, tolerance, max_rounds)
        assert part.codes.indices is not None
        parts.append((rows, part.codes.values, part.codes.indices))
        gap[rows], stuck[rows] = part.gap, part.stuck
        most = max(most, part.rounds)
    codes = put_together(parts, x, len(x), len(atoms))
    return Attempt(codes, gap, most, stuck)


def _solve(
    x: Tensor,
    atoms: Tensor,
    penalty: Penalty,
    initial: Codes | None,
    gram: Tensor | None,
    tolerance: float,
    max_rounds: int,
) -> Attempt:
    """Solve a chunk of rows: look, let those that are done leave, grow, solve, again."""
    n, m = len(x), len(atoms)
    codes = Codes(x.new_zeros(n, 1), torch.zeros(n, 1, dtype=torch.int64, device=x.device), m)
    if initial is not None:
        values, indices = support_of(initial, penalty.signed)
        codes = Codes(values.to(x), indices, m)
    rows = torch.arange(n, device=x.device)
    left: list[tuple[Tensor, Tensor, Tensor]] = []
    gap = x.new_full((n,), torch.inf)
    before, stuck = gap.clone(), torch.zeros_like(gap, dtype=torch.bool)
    rough = COARSE if initial is None and has_fast_bfloat16(x) else 0
    narrow = atoms.bfloat16() if rough else atoms
    rounds = 0
    while True:
        residual = x - reconstruct(codes, atoms)
        if rounds < min(rough, max_rounds):
            c = (residual.bfloat16() @ narrow.T).to(x)
        else:
            c = residual @ atoms.T
            now = gap_of(x, codes, residual, c, penalty)
            gap[rows] = now
            done = now <= tolerance
            if rounds == max_rounds:
                done = torch.ones_like(done)
            elif rounds > 0 and rounds % PATIENCE == 0 and x.dtype == torch.float32:
                stuck[rows] = ~done & (now > before[rows] / 2)
                done, before = done | stuck[rows], gap.clone()
            # The one place where the host waits for the device: once a round.
            n_done = int(done.sum())
            if n_done > 0:
                left.append((rows[done], *support_of(rows_of(codes, done))))
                if n_done == len(rows):
                    break
                stay = ~done
                rows, x, c, penalty = rows[stay], x[stay], c[stay], penalty.rows(stay)
                codes, residual = rows_of(codes, stay), residual[stay]
        effort = 1 if rounds < EASY else min(2 ** (rounds - EASY + 1), 64)
        codes = _round(codes, residual, c, atoms, gram, penalty, effort)
        rounds += 1
    return Attempt(put_together(left, x, n, m), gap, rounds, stuck)


def _round(
    codes: Codes,
    residual: Tensor,
    c: Tensor,
    atoms: Tensor,
    gram: Tensor | None,
    penalty: Penalty,
    effort: int,
) -> Codes:
    """Grow the working sets by the atoms that exceed their price most, and solve.

    On a CPU rows with about as many codes go together: the places of a batch are those of its
    fullest row.
    """
    if c.device.type != "cpu" or len(c) <= BATCH:
        return _grown(codes, residual, c, atoms, gram, penalty, effort)
    parts = []
    for rows in torch.split((codes.values != 0).sum(1).argsort(), BATCH):
        some = _grown(
            rows_of(codes, rows), residual[rows], c[rows], atoms, gram, penalty.rows(rows), effort
        )
        assert some.indices is not None
        parts.append((rows, some.values, some.indices))
    return put_together(parts, c, len(c), len(atoms))


def _grown(
    codes: Codes,
    residual: Tensor,
    c: Tensor,
    atoms: Tensor,
    gram: Tensor | None,
    penalty: Penalty,
    effort: int,
) -> Codes:
    """Take a round with a batch; `c` only chooses, the correlations come from the residual."""
    values, indices, m = codes
    assert indices is not None
    reach = c.abs() if penalty.signed else c
    ratio = reach / penalty.price
    active = (values != 0).to(c)
    # What is in the set with a code stays in it; everything else has to earn its place.
    ratio = ratio.scatter_add(1, indices, active * 1e6)
    most = int(active.sum(1).max())
    s = min(m, -(-(most + max(GROW, most // 2)) // 8) * 8)
    chosen = top_indices(ratio, s)
    a = torch.zeros_like(c).scatter_(1, indices, values).gather(1, chosen)
    price = penalty.price
    if price.shape[1] > 1:
        price = price.expand(len(c), -1).gather(1, chosen)
    table = atoms.index_select(0, chosen.reshape(-1)).view(*chosen.shape, -1)
    q = torch.bmm(table, residual[:, :, None])[:, :, 0] - penalty.ridge * a
    if gram is None:
        h = torch.bmm(table, table.transpose(1, 2))
    else:
        h = gram.reshape(-1).take(chosen[:, :, None] * m + chosen[:, None, :])
    if penalty.ridge > 0:
        h = h + penalty.ridge * torch.eye(s, dtype=h.dtype, device=h.device)
    return Codes(solve_local(Local(h, price, penalty.signed), q, a, effort), chosen, m)


def solve_local(local: Local, q: Tensor, a: Tensor, effort: int = 1) -> Tensor:
    """Return codes near the minimum of small problems, `[n, s]`; never uphill.

    Accelerated proximal gradient with restart finds the support, Newton steps solve it.

    Args:
        local: the problems.
        q: correlations with the residual at `a`, `[n, s]`.
        a: codes to start from, `[n, s]`.
        effort: factor of the number of steps.
    """
    a, q = _descend(local, q, a, DESCENT * effort)
    a, q, cut = _newton(local, q, a)
    for _ in range(NEWTON * effort - 1):
        if a.device.type != "cpu":
            a, q, cut = _newton(local, q, a)
            continue
        # Where looking is free, only the rows that were cut take another step.
        rows = cut.nonzero()[:, 0]
        if len(rows) == 0:
            break
        a[rows], q[rows], cut[rows] = _newton(local.rows(rows), q[rows], a[rows])
    return a


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    """Return the product of every row, `[n, s]`; a batched product of vectors takes 4 times as long."""  # noqa: E501
    return (matrix * vector[:, None, :]).sum(-1)


def _descend(local: Local, q: Tensor, a: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Take accelerated steps with restart; return codes and correlations."""
    h, price, signed = local
    # The largest eigenvalue is at most the largest sum of a row, and near it where atoms are
    # alike, as those of a working set are.
    eta = 1 / h.abs().sum(-1).amax(1, keepdim=True)
    b = q + _apply(h, a)
    y, inertia = a, torch.ones_like(eta)
    for _ in range(steps):
        new = shrunk(torch.addcmul(y, eta, b - _apply(h, y)), eta * price, signed)
        change = new - a
        uphill = ((y - new) * change).sum(1, keepdim=True) > 0
        following = (1 + (1 + 4 * inertia.square()).sqrt()) / 2
        momentum = ((inertia - 1) / following).masked_fill_(uphill, 0.0)
        inertia = following.masked_fill_(uphill, 1.0)
        a, y = new, torch.addcmul(new, momentum, change)
    return a, b - _apply(h, a)


def _newton(local: Local, q: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Step to the minimum over the signs of the active codes.

    Codes that would change sign are cut to zero; where that would go uphill, the step ends where
    the first one reaches zero.

    Returns:
        Codes, correlations, and bool `[n]`: whether something was cut.
    """
    h, price, _ = local
    jitter = 1e-4 if h.dtype == torch.float32 else 1e-10
    on = (a != 0).to(h)
    slope = (q - price * a.sign()) * on
    matrix = h * on[:, :, None] * on[:, None, :]
    matrix.diagonal(dim1=1, dim2=2).add_(1 + jitter - on)
    low, failed = torch.linalg.cholesky_ex(matrix)
    half = torch.linalg.solve_triangular(low, slope[:, :, None], upper=False)
    z = torch.linalg.solve_triangular(low.mT, half, upper=True)[:, :, 0]
    z = torch.where((failed == 0)[:, None], z * on, 0.0)
    cut = ((a + z) * a <= 0) & (a != 0)
    step = torch.where(cut, -a, z)
    change = (step * (0.5 * _apply(h, step) - slope)).sum(1, keepdim=True)
    ratio = torch.where(cut, -a / z, 1.0)
    share = ratio.amin(1, keepdim=True)
    short = torch.where(ratio <= share, -a, share * z)
    short = torch.where(cut.any(1, keepdim=True), short, 0.0)
    step = torch.where(change <= 0, step, short)
    return a + step, q - _apply(h, step), cut.any(1)
