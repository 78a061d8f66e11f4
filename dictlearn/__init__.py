"""Transformer factors by dictionary learning: `x = a Phi + eps, a >= 0, ||phi_c|| = 1`.

Rows are data everywhere (the paper's columns are our rows):

    paper (Yun et al. 2021)         here
    x in R^d, a hidden state        x, a row of `vectors: [n, d]`
    Phi in R^{d x m}                `atoms: [m, d]`, unit rows
    alpha >= 0, sparse              `codes: [n, m]`
    lambda, the price of a code     `prox.lambda_`
    X^(l), all states of layer l    rows whose `layer` is l; 0 = embedding output
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dictlearn.storage.saved import load
    from dictlearn.storage.trained import TrainedDictionary

__all__ = ["TrainedDictionary", "load"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # On first use: the command line answers --help without torch.
    from dictlearn.storage import saved

    return getattr(saved, name)
