"""A peer that is not there: the worker of tests, with an autoencoder that reconstructs half."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "workers"))

import common  # type: ignore[import-not-found]
import torch

print("what a peer prints while it is imported is no answer")  # noqa: T201


class Half:
    """Codes are the rows, the dictionary is half the identity."""

    def __init__(self, settings: dict[str, Any], first: Any) -> None:
        self.atoms = 0.5 * torch.eye(first.shape[1])
        self.seen: list[Any] = []

    def step(self, batch: Any) -> None:
        print("a step")  # noqa: T201
        self.seen.append(batch)

    def finish(self) -> None:
        pass

    def codes(self, x: Any, k: int) -> Any:
        return x

    def decode(self, codes: Any) -> Any:
        return codes @ self.atoms

    def dictionary(self) -> tuple[Any, Any]:
        return self.atoms, torch.zeros(self.atoms.shape[1])


if __name__ == "__main__":
    common.serve(common.training_tasks(Half), "torch")
