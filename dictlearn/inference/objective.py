"""What is minimised, and how far from the minimum a code is.

Legend: n rows, m atoms, d width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.kernels import reconstruct
from dictlearn.mesh import ALONE, Processes
from dictlearn.prox import Penalty, Priced, Prox


def objective(
    x: Tensor, codes: Codes, atoms: Tensor, prox: Prox, shards: Processes = ALONE
) -> Tensor:
    """Return `1/2 |x - a Phi|^2 + penalty(a)` of every row, `[n]` (Yun et al. 2021, eq. 2)."""
    return objective_of(x, shards.sum(reconstruct(codes, atoms)), codes, prox, shards)


def objective_of(
    x: Tensor, decoded: Tensor, codes: Codes, prox: Prox, shards: Processes = ALONE
) -> Tensor:
    """Return the objective of every row, `[n]`, where the reconstruction `[n, d]` is known."""
    return 0.5 * (x - decoded).square().sum(-1) + shards.sum(prox.value(codes))


def training_loss(
    x: Tensor, decoded: Tensor, codes: Codes, prox: Prox, weight: Tensor | None = None
) -> Tensor:
    """Return the mean over rows of `weight * (1/2 |x - x_hat|^2 + penalty(a))`.

    With codes that carry no gradient, the gradient of the atoms is
    `-(1/n) sum_i weight_i r_i^T a_i`, `r = x - x_hat`: the paper's update direction.

    Args:
        x: hidden states `[n, d]`.
        decoded: reconstruction `x_hat: [n, d]`.
        codes: the codes it was decoded from.
        prox: the sparsity.
        weight: of every row, `[n]`, 1 if None.
    """
    price = 0.5 * (x - decoded).square().sum(-1) + prox.value(codes)
    return price.mean() if weight is None else (weight * price).mean()


@torch.no_grad()
def duality_gap(
    x: Tensor, codes: Codes, atoms: Tensor, prox: Prox, shards: Processes = ALONE
) -> Tensor:
    """Return the relative duality gap of every row, `[n]`: never below the true suboptimality.

    See `gap_of` for the formula. `soft`, `relu` and the other convex sparsities: the gap is 0
    only at the optimum. `reweighted`: it is that of the convex problem at these codes, 0 only
    where reweighting has come to rest. `topk` and other counts: it is the gap of the lasso whose
    price is, row by row, the largest correlation of an inactive atom with the residual (at least
    0): how far the codes are from the l1 solution with that support. It is no bound for the
    k-sparse problem, which has no such certificate. Rows that are zero give 0.

    Args:
        x: `[n, d]`.
        codes: of the signs that the sparsity allows.
        atoms: `[m, d]`, unit rows.
        prox: the sparsity.
        shards: the processes that hold the atoms together; atoms and codes are of this one's.
    """
    residual = x - shards.total(reconstruct(codes, atoms))
    correlation = residual @ atoms.T
    if isinstance(prox, Priced):
        penalty = prox.reweighed(x, codes)
    else:
        inactive = correlation.masked_fill(codes.dense() > 0, -torch.inf)
        largest = shards.largest(inactive.amax(-1, keepdim=True))
        penalty = Penalty(largest.clamp_min(0), 0.0, False)
    return gap_of(x, codes, residual, correlation, penalty, shards)


def gap_of(
    x: Tensor,
    codes: Codes,
    residual: Tensor,
    correlation: Tensor,
    penalty: Penalty,
    shards: Processes = ALONE,
) -> Tensor:
    """Return the relative duality gap of every row, `[n]`, for a convex penalty.

    With residual `r`, correlations `c = r Phi^T`, prices `p`, a ridge `rho` (which is a lasso
    with `sqrt(rho)` times the identity beside the atoms: `E = |r|^2 + rho |a|^2` and
    `c' = c - rho a`) and the feasible dual point `s r`, where `s` maximises the dual over
    `0 <= s <= min_j p_j / c'_j`, the gap is

        gap = 1/2 (1 - s)^2 E + sum_j (p_j |a_j| - s a_j c'_j),

    a sum of terms that hardly cancel, so that the float32 floor is about 1e-6 (of the usual
    difference primal - dual it is 1e-5). It is relative to the objective, and where codes have
    no price to `1/2 |x|^2`, because the objective itself may then go to 0.

    Args:
        x: `[n, d]`.
        codes: of the rows.
        residual: `x - a Phi`, `[n, d]`.
        correlation: `residual Phi^T`, `[n, m]`.
        penalty: prices and ridge.
        shards: the processes that hold the atoms together; codes, correlations and prices are
            of this one's.
    """
    values, indices, _ = codes
    tiny = torch.finfo(x.dtype).tiny
    correlation = _less_ridge(correlation, codes, penalty.ridge)
    active = correlation if indices is None else correlation.gather(1, indices)
    price = penalty.price_of(codes)
    energy = residual.square().sum(-1, keepdim=True)
    if penalty.ridge > 0:
        energy = energy + penalty.ridge * shards.total(values.square().sum(-1, keepdim=True))
    fit = shards.total((values * active).sum(-1, keepdim=True))
    s = ((energy + fit) / energy.clamp_min(tiny)).clamp_min(0)
    s = s.minimum(_largest_feasible(correlation, penalty, shards))
    terms = values.abs() * (price - s * values.sign() * active)
    gap = 0.5 * (1 - s).square() * energy + shards.total(terms.sum(-1, keepdim=True))

    paid = shards.total((price * values.abs()).sum(-1, keepdim=True))
    value = 0.5 * energy + paid
    priced = shards.largest(penalty.price.amax(-1, keepdim=True)) > 0
    scale = torch.where(priced, value, 0.5 * x.square().sum(-1, keepdim=True))
    relative = gap.clamp_min(0) / scale.clamp_min(tiny)
    # Below, squares underflow: such rows are zero rows.
    return torch.where(scale > tiny / torch.finfo(x.dtype).eps, relative, 0.0).squeeze(-1)


def _less_ridge(correlation: Tensor, codes: Codes, ridge: float) -> Tensor:
    """Return `c' = c - rho a`, `[n, m]`."""
    if ridge == 0:
        return correlation
    pull = -ridge * codes.values
    if codes.indices is None:
        return correlation + pull
    return correlation.scatter_add(1, codes.indices, pull)


def _largest_feasible(correlation: Tensor, penalty: Penalty, shards: Processes) -> Tensor:
    """Return the largest `s` for which `s r` is a feasible dual point, `min_j p_j / c'_j: [n, 1]`.

    Args:
        correlation: `c': [n, m]`.
        penalty: prices `p`.
        shards: the processes that hold the atoms together.
    """
    reach = correlation.abs() if penalty.signed else correlation
    price = penalty.price.clamp_min(torch.finfo(correlation.dtype).tiny)
    if price.shape[1] == 1:
        largest = reach.amax(-1, keepdim=True) / price
    else:
        largest = (reach / price).amax(-1, keepdim=True)
    largest = shards.largest(largest)
    return torch.where(largest > 0, 1 / largest, torch.inf)
