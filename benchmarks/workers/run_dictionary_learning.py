"""saprmarks/dictionary_learning: its own trainers, and its gradient pursuit."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch
from common import Settings, serve, stub, training_tasks, warm_and_decay
from measure import Clock

stub("nnsight", "wandb", "datasets", "zstandard")
trainers = importlib.import_module("dictionary_learning.trainers")
grad_pursuit = importlib.import_module("dictionary_learning.grad_pursuit").grad_pursuit


class Autoencoder:
    """TopK or BatchTopK, by the package's trainer of that name."""

    def __init__(self, settings: Settings, first: Any) -> None:
        total, warm, decay = warm_and_decay(settings)
        common = {
            "steps": total,
            "activation_dim": first.shape[1],
            "dict_size": settings["n_atoms"],
            "layer": 0,
            "lm_name": "benchmark",
            "warmup_steps": warm,
            "decay_start": decay,
            "seed": settings["seed"],
            "device": settings["device"],
        }
        if settings.get("lr") is not None:
            common["lr"] = settings["lr"]
        kind = {"topk": trainers.TopKTrainer, "batch_topk": trainers.BatchTopKTrainer}
        self.trainer = kind[settings["method"]](**common, k=settings["k"])
        self.number = 0

    def step(self, batch: Any) -> None:
        """Take one whole training step."""
        self.trainer.update(self.number, batch)
        self.number += 1

    def finish(self) -> None:
        """Do nothing: it encodes as it is."""

    def codes(self, x: Any, k: int) -> Any:
        """Return its codes: k a row, or k a row on average over the rows given."""
        ae = self.trainer.ae
        ae.k.fill_(k)
        return ae.encode(x, use_threshold=False)

    def decode(self, codes: Any) -> Any:
        """Return the reconstructions."""
        return self.trainer.ae.decode(codes)

    def dictionary(self) -> tuple[Any, Any]:
        """Return atoms and bias."""
        ae = self.trainer.ae
        return ae.decoder.weight.detach().T.contiguous(), ae.b_dec.detach()


def pursuit(settings: Settings) -> dict[str, Any]:
    """Return the time of its gradient pursuit, and save its codes."""
    x = torch.from_numpy(np.load(settings["vectors"])).to(settings["device"])
    atoms = torch.from_numpy(np.load(settings["atoms"])).to(settings["device"]).T.contiguous()
    clock = Clock(settings["device"])
    codes = grad_pursuit(x, atoms, settings["k"], settings["device"])
    answer: dict[str, Any] = clock.read()
    np.save(settings["out"], codes.cpu().numpy())
    return answer


tasks = training_tasks(Autoencoder) | {"grad_pursuit": pursuit}

if __name__ == "__main__":
    serve(tasks, "dictionary-learning", "torch")
