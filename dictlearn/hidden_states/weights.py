"""Weights of rows by how common their token is (Yun et al. 2021: the square root of the count)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def token_weights(counts: NDArray[np.int64], exponent: float, normalize: bool) -> Tensor:
    """Return the weight `count ** -exponent` of every token id, float32 `[V]`.

    A token that the training text never has weighs as if it were there once.

    Args:
        counts: how often every id becomes a vector in one pass over the training text, `[V]`.
        exponent: 0 = all weights 1; 1/2 = Yun et al. 2021, section 2.
        normalize: scale the weights so that their mean over the training text is 1.
    """
    weights = np.maximum(counts, 1).astype(np.float64) ** -exponent
    if normalize:
        weights *= counts.sum() / (counts * weights).sum()
    return torch.from_numpy(weights.astype(np.float32))
