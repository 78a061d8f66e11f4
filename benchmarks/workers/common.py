"""What every worker shares: the loop over tasks, and training as a peer does it.

A worker runs in the environment of its peer: nothing here may need more than torch and numpy.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol
from unittest.mock import MagicMock

import numpy as np

sys.path.append(str(Path(__file__).resolve().parent.parent))

from measure import Clock, peak_bytes, resident_bytes, training_order

# Only answers go to the standard output: what a peer prints, even while it is imported, goes to the
# standard error.
_ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

Settings = dict[str, Any]
Task = Callable[[Settings], dict[str, Any]]


def stub(*modules: str) -> None:
    """Let modules be imported that are not installed and that training does not use."""
    for name in modules:
        sys.modules[name] = MagicMock(__spec__=None, __path__=[])


def serve(tasks: dict[str, Task], *distributions: str) -> None:
    """Answer tasks from the standard input, one JSON line each, until it ends."""

    def versions(settings: Settings) -> dict[str, Any]:
        _configure(int(settings["threads"]))
        return {name: importlib.metadata.version(name) for name in distributions}

    for line in sys.stdin:
        settings = json.loads(line)
        try:
            answer = (tasks | {"versions": versions})[settings.pop("task")](settings)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        _ANSWERS.write(json.dumps(answer) + "\n")
        _ANSWERS.flush()


def _configure(threads: int) -> None:
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("medium")


class Trainer(Protocol):
    """One autoencoder in training, as its own package trains it."""

    def step(self, batch: Any) -> None:
        """Take one whole training step."""

    def finish(self) -> None:
        """Make it ready to encode."""

    def codes(self, x: Any, k: int) -> Any:
        """Return dense codes `[n, m]` of `x: [n, d]` at `k` codes a row, as it encodes itself."""

    def decode(self, codes: Any) -> Any:
        """Return the reconstructions `[n, d]`."""

    def dictionary(self) -> tuple[Any, Any]:
        """Return the atoms `[m, d]`, of any length, and the bias `[d]`."""


def training_tasks(build: Callable[[Settings, Any], Trainer]) -> dict[str, Task]:
    """Return the tasks of a package that trains autoencoders.

    Args:
        build: makes a trainer from the settings and the first batch.
    """
    kept: dict[str, Any] = {}

    def start(settings: Settings) -> dict[str, Any]:
        """Load vectors and make a trainer."""
        import torch

        torch.manual_seed(int(settings.get("seed", 0)))
        kept.clear()
        before = resident_bytes(settings["device"])
        kept["x"] = torch.from_numpy(np.load(settings["vectors"])).to(settings["device"])
        kept["settings"] = settings
        kept["at"] = 0
        kept["trainer"] = build(settings, kept["x"][: settings["batch"]])
        return {"imported": before, "started": resident_bytes(settings["device"])}

    def steps(settings: Settings) -> dict[str, Any]:
        """Take some steps, and tell the time of each."""
        size, x, found = kept["settings"]["batch"], kept["x"], []
        for _ in range(settings["n"]):
            clock = Clock(kept["settings"]["device"])
            first = kept["at"] % (len(x) - size + 1)
            kept["trainer"].step(x[first : first + size])
            kept["at"] += size
            found.append(clock.read())
        return {
            "cpu": [entry["cpu"] for entry in found],
            "wall": [entry["wall"] for entry in found],
            "peak_bytes": peak_bytes(kept["settings"]["device"]),
        }

    return {"start": start, "steps": steps, "train": lambda settings: _train(build, settings)}


def _train(build: Callable[[Settings, Any], Trainer], settings: Settings) -> dict[str, Any]:
    """Train on so many vectors in the given order, and evaluate on the held-out ones."""
    import torch

    torch.manual_seed(int(settings["seed"]))
    x = torch.from_numpy(np.load(settings["vectors"])).to(settings["device"])
    order = training_order(len(x), settings["n_vectors"], settings["seed"])
    size = settings["batch"]
    clock, trainer = Clock(settings["device"]), None
    for first in range(0, len(order) - size + 1, size):
        batch = x[torch.from_numpy(order[first : first + size]).to(x.device)]
        trainer = build(settings, batch) if trainer is None else trainer
        trainer.step(batch)
    assert trainer is not None
    trainer.finish()
    answer: dict[str, Any] = clock.read()
    held = torch.from_numpy(np.load(settings["held"])).to(settings["device"])
    with torch.no_grad():
        for k in settings["evaluate"]:
            answer |= {f"{name}@{k}": v for name, v in _evaluate(trainer, held, k).items()}
        atoms, bias = trainer.dictionary()
        np.savez(settings["out"], atoms=atoms.cpu().numpy(), bias=bias.cpu().numpy())
    return answer


def _evaluate(trainer: Trainer, held: Any, k: int) -> dict[str, float]:
    import torch

    error = torch.zeros((), dtype=torch.float64)
    count, fired = 0, None
    for rows in held.split(1024):
        codes = trainer.codes(rows, k)
        error += (rows - trainer.decode(codes)).double().square().sum().cpu()
        count += int((codes > 1e-6).sum())
        now = (codes > 1e-6).any(0)
        fired = now if fired is None else fired | now
    spread = (held - held.mean(0)).double().square().sum().cpu()
    assert fired is not None
    return {
        "fvu": float(error / spread),
        "l0": count / len(held),
        "silent": float((~fired).float().mean()),
    }


def warm_and_decay(settings: Settings) -> tuple[int, int, int]:
    """Return the steps of the run, of its warm-up, and before the decay over its last 30 %."""
    total = max(1, int(settings["n_vectors"]) // int(settings["batch"]))
    warm = max(1, min(50, total // 10))
    return total, warm, max(warm + 1, int(0.7 * total))
