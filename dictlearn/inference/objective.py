"""What is minimised, and how far from the minimum a code is.

Legend: n rows, m atoms, d width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.kernels import reconstruct
from dictlearn.prox import Prox


def objective(x: Tensor, codes: Codes, atoms: Tensor, prox: Prox) -> Tensor:
    """Return `1/2 |x - a Phi|^2 + penalty(a)` of every row, `[n]` (Yun et al. 2021, eq. 2)."""
    return 0.5 * (x - reconstruct(codes, atoms)).square().sum(-1) + prox.value(codes)


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
def duality_gap(x: Tensor, codes: Codes, atoms: Tensor, prox: Prox) -> Tensor:
    """Return the relative duality gap of every row, `[n]`: never below the true suboptimality.

    With residual `r`, correlations `c = r Phi^T`, price `lambda` and the feasible dual point
    `s r`, where `s` maximises the dual over `0 <= s <= lambda / max(c)`, the gap of the
    non-negative lasso is

        gap = 1/2 (1 - s)^2 |r|^2 + sum_j a_j (lambda - s c_j),

    a sum of non-negative terms: nothing cancels, so that the float32 floor is about 1e-6 (of
    the usual difference primal - dual it is 1e-5). It is relative to the objective, and where
    codes have no price to `1/2 |x|^2`, because the objective itself may then go to 0.

    `soft`, `relu`: the gap is 0 only at the optimum. `topk`: it is the gap of the lasso whose
    `lambda` is, row by row, the largest correlation of an inactive atom with the residual
    (at least 0): how far the codes are from the l1 solution with that support. It is no bound
    for the k-sparse problem, which has no such certificate. Rows that are zero give 0.

    Args:
        x: `[n, d]`.
        codes: non-negative codes.
        atoms: `[m, d]`, unit rows.
        prox: the sparsity.
    """
    residual = x - reconstruct(codes, atoms)
    correlation = residual @ atoms.T
    values = codes.values
    active = correlation if codes.indices is None else correlation.gather(1, codes.indices)
    price = _price(correlation, codes, prox)[:, None]
    tiny = torch.finfo(x.dtype).tiny

    energy = residual.square().sum(-1, keepdim=True)
    largest = correlation.amax(-1, keepdim=True)
    limit = torch.where(largest > 0, price / largest.clamp_min(tiny), torch.inf)
    fit = (values * active).sum(-1, keepdim=True)
    s = ((energy + fit) / energy.clamp_min(tiny)).clamp_min(0).minimum(limit)
    gap = 0.5 * (1 - s).square() * energy + (values * (price - s * active)).sum(-1, keepdim=True)

    value = 0.5 * energy + price * codes.l1()[:, None]
    scale = torch.where(price > 0, value, 0.5 * x.square().sum(-1, keepdim=True))
    relative = gap.clamp_min(0) / scale.clamp_min(tiny)
    return torch.where(scale > 0, relative, 0.0).squeeze(-1)


def _price(correlation: Tensor, codes: Codes, prox: Prox) -> Tensor:
    """Return the price of one unit of code in every row, `[n]`."""
    if prox.convex:
        return correlation.new_full((len(correlation),), prox.lambda_)
    inactive = correlation.masked_fill(codes.dense() > 0, -torch.inf)
    return inactive.amax(-1).clamp_min(0)
