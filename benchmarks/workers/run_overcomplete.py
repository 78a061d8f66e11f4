"""KempnerInstitute/overcomplete: TopK by its `train_sae`, and its two pursuits."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch
from common import Settings, serve, stub, training_tasks, warm_and_decay
from measure import Clock

stub("overcomplete.visualization", "overcomplete.models")
sae = importlib.import_module("overcomplete.sae")


def squared_error(x: Any, x_hat: Any, *_: Any) -> Any:
    """Return the mean squared error."""
    return (x - x_hat).square().mean()


class Autoencoder:
    """TopK with Adam."""

    def __init__(self, settings: Settings, first: Any) -> None:
        self.device = settings["device"]
        self.sae = sae.TopKSAE(
            first.shape[1], settings["n_atoms"], top_k=settings["k"], device=self.device
        )
        self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=settings.get("lr") or 5e-4)
        total, warm, decay = warm_and_decay(settings)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda n: max(0.0, min(1.0, (n + 1) / warm, (total - n) / max(1, total - decay))),
        )

    def step(self, batch: Any) -> None:
        """Take one whole training step: an epoch of one batch."""
        sae.train_sae(
            self.sae,
            [batch],
            squared_error,
            self.optimizer,
            self.schedule,
            nb_epochs=1,
            monitoring=0,
            device=self.device,
        )

    def finish(self) -> None:
        """Go over to evaluation, which fuses the dictionary."""
        self.sae.eval()

    def codes(self, x: Any, k: int) -> Any:
        """Return its codes, k a row."""
        self.sae.top_k = k
        return self.sae.encode(x)[1]

    def decode(self, codes: Any) -> Any:
        """Return the reconstructions."""
        return self.sae.decode(codes)

    def dictionary(self) -> tuple[Any, Any]:
        """Return atoms and a bias of zeros: it has none."""
        atoms = self.sae.get_dictionary().detach()
        return atoms, atoms.new_zeros(atoms.shape[1])


def pursuit(settings: Settings) -> dict[str, Any]:
    """Return the time of OMPSAE's or MpSAE's encoding, and save its codes."""
    device = settings["device"]
    x = torch.from_numpy(np.load(settings["vectors"])).to(device)
    atoms = torch.from_numpy(np.load(settings["atoms"])).to(device)
    kind = {"omp": sae.OMPSAE, "mp": sae.MpSAE}[settings["method"]]
    coder = kind(x.shape[1], len(atoms), k=settings["k"], device=device)
    coder.dictionary._weights.data = atoms
    coder.eval()
    clock = Clock(device)
    with torch.no_grad():
        codes = coder.encode(x)[1]
    answer: dict[str, Any] = clock.read()
    np.save(settings["out"], codes.cpu().numpy())
    return answer


if __name__ == "__main__":
    serve(training_tasks(Autoencoder) | {"pursuit": pursuit}, "overcomplete", "torch")
