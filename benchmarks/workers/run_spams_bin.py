"""SPAMS: compiled homotopy for the non-negative lasso, and online dictionary learning with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import spams
from common import Settings, Task, serve
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


def learning() -> dict[str, Task]:
    """Return the tasks of `trainDL`, which goes on where the last part ended."""
    kept: dict[str, Any] = {}

    def begin(settings: Settings) -> dict[str, Any]:
        """Take the atoms to begin with."""
        atoms = np.asfortranarray(np.load(settings["atoms"]).T, dtype=np.float32)
        kept.update(D=atoms, model=None)
        return {}

    def learn(settings: Settings) -> dict[str, Any]:
        """Return the time of one pass over the rows, and save the atoms."""
        rows = np.load(settings["vectors"])[np.load(settings["order"])]
        x = np.asfortranarray(rows.T, dtype=np.float32)
        clock = Clock()
        kept["D"], kept["model"] = spams.trainDL(
            x,
            return_model=True,
            **kept,
            lambda1=settings["lambda"],
            mode=2,
            posAlpha=True,
            batchsize=settings["batch"],
            iter=len(rows) // settings["batch"],
            numThreads=settings["threads"],
            verbose=False,
        )
        answer: dict[str, Any] = clock.read()
        np.save(settings["out"], np.ascontiguousarray(kept["D"].T))
        return answer

    return {"begin": begin, "learn": learn}


if __name__ == "__main__":
    serve({"lasso": lasso} | learning(), "spams-bin", "numpy")
