"""Scikit-learn's coordinate descent as an oracle, and the duality gap from the textbook."""

import numpy as np
import torch
from sklearn.linear_model import ElasticNet as SklearnElasticNet
from torch import Tensor


def oracle(x: Tensor, atoms: Tensor, price: Tensor, ridge: float, signed: bool) -> Tensor:
    """Return the optimal codes of every row, float64; `price: [n, m]` above 0."""
    rows = []
    for row, p in zip(x.double().numpy(), price.double().numpy(), strict=True):
        rows.append(_one(row, atoms.double().numpy(), p, ridge, signed))
    return torch.from_numpy(np.stack(rows))


def _one(
    x: np.ndarray, atoms: np.ndarray, price: np.ndarray, ridge: float, signed: bool
) -> np.ndarray:
    """Return one row; weights by scaled atoms, the ridge by atoms of its own below."""
    d = len(x)
    # With b = price * a the l1 price is 1; a ridge is sqrt(ridge) a, to be fitted to zeros.
    wide = np.concatenate([atoms.T / price, np.sqrt(ridge) * np.diag(1 / price)])
    target = np.concatenate([x, np.zeros(len(price))])
    model = SklearnElasticNet(
        alpha=1 / len(target), l1_ratio=1.0, positive=not signed, fit_intercept=False,
        tol=1e-13, max_iter=1_000_000,
    )  # fmt: skip
    if not ridge:
        wide, target = wide[:d], target[:d]
        model.set_params(alpha=1 / d)
    return np.asarray(model.fit(wide, target).coef_ / price)


def value_and_gap(
    x: Tensor, a: Tensor, atoms: Tensor, price: Tensor, ridge: float, signed: bool
) -> tuple[Tensor, Tensor]:
    """Return objective and relative gap in float64, primal minus dual of the augmented lasso."""
    x, a, atoms, price = x.double(), a.double(), atoms.double(), price.double()
    m = len(atoms)
    wide = torch.cat([atoms, ridge**0.5 * torch.eye(m, dtype=torch.float64)], dim=1)
    x = torch.cat([x, x.new_zeros(len(x), m)], dim=1)
    residual = x - a @ wide
    primal = 0.5 * residual.square().sum(1) + (price * a.abs()).sum(1)
    c = residual @ wide.T
    reach = ((c.abs() if signed else c) / price).amax(1)
    limit = torch.where(reach > 0, 1 / reach, torch.inf)
    energy = residual.square().sum(1).clamp_min(1e-300)
    s = ((x * residual).sum(1) / energy).clamp_min(0).minimum(limit)
    dual = 0.5 * (x.square() - (x - s[:, None] * residual).square()).sum(1)
    return primal, (primal - dual) / primal.clamp_min(1e-300)
