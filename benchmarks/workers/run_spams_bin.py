"""SPAMS: compiled homotopy for the non-negative lasso."""

from __future__ import annotations

from typing import Any

import numpy as np
import spams
from common import Settings, serve
from measure import Clock


def lasso(settings: Settings) -> dict[str, Any]:
    """Return the time of `lasso(pos=True)` on all rows, and save the codes."""
    kind = np.float32 if settings["dtype"] == "float32" else np.float64
    x = np.asfortranarray(np.load(settings["vectors"]).T, dtype=kind)
    atoms = np.asfortranarray(np.load(settings["atoms"]).T, dtype=kind)
    clock = Clock()
    codes = spams.lasso(
        x, atoms, lambda1=settings["lambda"], mode=2, pos=True, numThreads=settings["threads"]
    )
    answer: dict[str, Any] = clock.read()
    np.save(settings["out"], np.ascontiguousarray(codes.toarray().T))
    return answer


if __name__ == "__main__":
    serve({"lasso": lasso}, "spams-bin", "numpy")
