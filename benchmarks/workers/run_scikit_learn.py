"""scikit-learn: `sparse_encode` by coordinate descent and by LARS."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from common import Settings, serve
from measure import Clock
from sklearn.decomposition import sparse_encode


def lasso(settings: Settings) -> dict[str, Any]:
    """Return the time of a few rows, and save their codes."""
    x = np.load(settings["vectors"])[: settings["rows"]].astype(np.float64)
    atoms = np.load(settings["atoms"]).astype(np.float64)
    warnings.simplefilter("ignore")
    clock = Clock()
    codes = sparse_encode(
        x, atoms, algorithm=settings["method"], alpha=settings["lambda"], positive=True, n_jobs=1
    )
    answer: dict[str, Any] = clock.read()
    np.save(settings["out"], codes)
    return answer


if __name__ == "__main__":
    serve({"lasso": lasso}, "scikit-learn", "numpy")
