"""scikit-learn: `sparse_encode` by coordinate descent and by LARS, and online learning with it."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from common import Settings, Task, serve
from measure import Clock
from sklearn.decomposition import MiniBatchDictionaryLearning, sparse_encode


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


def learning() -> dict[str, Task]:
    """Return the tasks of `MiniBatchDictionaryLearning.partial_fit`."""
    kept: dict[str, Any] = {}

    def begin(settings: Settings) -> dict[str, Any]:
        """Take the atoms to begin with."""
        kept.update(atoms=np.load(settings["atoms"]), learner=None)
        return {}

    def learn(settings: Settings) -> dict[str, Any]:
        """Return the time of one pass over the rows, and save the atoms."""
        rows = np.load(settings["vectors"])[np.load(settings["order"])]
        if kept["learner"] is None:
            kept["learner"] = MiniBatchDictionaryLearning(
                n_components=len(kept["atoms"]),
                alpha=settings["lambda"],
                batch_size=settings["batch"],
                fit_algorithm="cd",
                positive_code=True,
                dict_init=kept["atoms"],
                n_jobs=1,
            )
        warnings.simplefilter("ignore")
        clock = Clock()
        for batch in np.split(rows, len(rows) // settings["batch"]):
            kept["learner"].partial_fit(batch)
        answer: dict[str, Any] = clock.read()
        np.save(settings["out"], kept["learner"].components_)
        return answer

    return {"begin": begin, "learn": learn}


if __name__ == "__main__":
    serve({"lasso": lasso} | learning(), "scikit-learn", "numpy")
