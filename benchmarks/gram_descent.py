"""The prototype that the goal for exact learning was measured with, transcribed.

Cyclic coordinate descent over an active set with the whole Gram matrix of the dictionary, one row
after the other, to a relative duality gap; a price steered to the wanted L0; atoms moved by the
Hessian-diagonal rule. Legend: n rows, m atoms, d width; b correlations with x, q with the residual.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.measure import Clock

HISTORY, RATE, FLOOR, DECAY = 300, 0.05, 0.02, 0.3
"""Steps that energies are averaged over, step size, least share of the mean energy, last share of
the run in which steps become smaller."""


@numba.njit(fastmath=True, cache=True)
def _gap_is_small(b: Any, q: Any, a: Any, xx: float, lam: float, tolerance: float) -> bool:
    """Return whether the duality gap is at most its share of the objective."""
    ab, aq, total, largest = 0.0, 0.0, 0.0, 0.0
    for j in range(len(q)):
        if a[j] > 0:
            ab += a[j] * b[j]
            aq += a[j] * q[j]
            total += a[j]
        largest = max(largest, q[j])
    energy, fit = xx - ab - aq, xx - ab
    value = 0.5 * energy + lam * total
    s = fit / max(energy, 1e-30)
    if largest > 0:
        s = min(s, lam / largest)
    return value - (s * fit - 0.5 * s * s * energy) <= tolerance * value


@numba.njit(fastmath=True, cache=True)
def _passes(a: Any, q: Any, active: Any, count: int, gram: Any, lam: float, least: float) -> None:
    """Pass over the active set until no code moves by more than `least`."""
    for _ in range(1000):
        largest = 0.0
        for t in range(count):
            j = active[t]
            change = max(a[j] + q[j] - lam, 0.0) - a[j]
            if change != 0:
                a[j] += change
                for u in range(count):
                    q[active[u]] -= change * gram[j, active[u]]
                largest = max(largest, abs(change))
        if largest < least:
            break


@numba.njit(fastmath=True, cache=True)
def _descend(b: Any, gram: Any, xx: Any, lam: float, tolerance: float, codes: Any) -> None:
    """Write the codes `[n, m]`, which are zero before."""
    n, m = b.shape
    active, inside = np.empty(m, np.int64), np.zeros(m, np.bool_)
    for i in range(n):
        a, q, count = codes[i], b[i].copy(), 0
        inside[:] = False
        for _ in range(50):
            if _gap_is_small(b[i], q, a, xx[i], lam, tolerance):
                break
            for j in range(m):
                if not inside[j] and q[j] > lam:
                    a[j] = q[j] - lam
                    active[count] = j
                    count += 1
                    inside[j] = True
                    for k in range(m):
                        q[k] -= a[j] * gram[j, k]
            _passes(a, q, active, count, gram, lam, 1e-3 * math.sqrt(tolerance) * lam)
            kept = 0
            for t in range(count):
                inside[active[t]] = a[active[t]] > 0
                if a[active[t]] > 0:
                    active[kept] = active[t]
                    kept += 1
            count = kept
            for k in range(m):
                q[k] = b[i, k]
            for t in range(count):
                for k in range(m):
                    q[k] -= a[active[t]] * gram[active[t], k]


class Prototype:
    """The prototype in training.

    Args:
        x: rows `[n, d]`.
        atoms: to begin with, `[m, d]`.
        price: to begin with.
        l0: wanted.
        tolerance: relative duality gap of every row.
        batch: rows of a step.
        n_vectors: the budget.
    """

    def __init__(
        self,
        x: Tensor,
        atoms: Tensor,
        price: float,
        l0: float,
        tolerance: float,
        batch: int,
        n_vectors: int,
    ) -> None:
        self.x, self.atoms, self.price, self.l0 = x, atoms.clone(), price, l0
        self.tolerance, self.batch = tolerance, batch
        self.n_steps, self.count = n_vectors // batch, 0
        self.energy = torch.zeros(len(atoms))

    def train(self, order: NDArray[np.int64]) -> dict[str, float]:
        """Take steps over the rows in this order; return the time it took."""
        clock = Clock()
        for first in range(0, len(order) - self.batch + 1, self.batch):
            self._step(self.x[torch.from_numpy(order[first : first + self.batch])])
        return clock.read()

    def _step(self, x: Tensor) -> None:
        gram = (self.atoms @ self.atoms.T).numpy()
        codes = torch.zeros(len(x), len(self.atoms))
        _descend(
            (x @ self.atoms.T).numpy(),
            gram,
            x.square().sum(1).numpy(),
            self.price,
            self.tolerance,
            codes.numpy(),
        )
        found = float((codes > 0).sum(1).float().mean())
        self.price *= math.exp(0.1 * max(-1.0, min(1.0, found / self.l0 - 1)))
        self._update(x, codes)

    def _update(self, x: Tensor, codes: Tensor) -> None:
        sparse = codes.to_sparse_csr()
        residual = x - sparse @ self.atoms
        step = sparse.t().to_sparse_csr() @ residual / len(x)
        self.energy = self.energy * (1 - 1 / HISTORY) + codes.square().mean(0) / HISTORY
        energy = self.energy / (1 - (1 - 1 / HISTORY) ** (self.count + 1))
        rate = RATE * min(1.0, (self.n_steps - self.count) / (DECAY * self.n_steps))
        moved = self.atoms + rate * step / (energy + FLOOR * energy.mean())[:, None]
        self.atoms = moved / moved.norm(dim=1, keepdim=True)
        self.count += 1
