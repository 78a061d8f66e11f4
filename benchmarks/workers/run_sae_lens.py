"""SAELens: its training classes and its SAETrainer, stepped as its `fit` steps it."""

from __future__ import annotations

from typing import Any

import torch
from common import Settings, serve, training_tasks, warm_and_decay
from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer


class Autoencoder:
    """TopK or BatchTopK."""

    def __init__(self, settings: Settings, first: Any) -> None:
        total, warm, decay = warm_and_decay(settings)
        size = {"d_in": first.shape[1], "d_sae": settings["n_atoms"], "device": settings["device"]}
        self.method = settings["method"]
        if self.method == "batch_topk":
            config = BatchTopKTrainingSAEConfig(**size, k=float(settings["k"]))
            self.sae = BatchTopKTrainingSAE(config)
        else:
            self.sae = TopKTrainingSAE(TopKTrainingSAEConfig(**size, k=settings["k"]))
        rate = settings.get("lr") or 3e-4
        self.trainer = SAETrainer(
            SAETrainerConfig(
                total_training_samples=total * settings["batch"],
                train_batch_size_samples=settings["batch"],
                lr=rate,
                lr_end=rate,
                lr_warm_up_steps=warm,
                lr_decay_steps=total - decay,
                device=settings["device"],
            ),
            self.sae,
            iter(()),
        )

    def step(self, batch: Any) -> None:
        """Take one whole training step."""
        self.trainer.maybe_reset_sparsity()
        self.trainer.step(batch)
        self.trainer.n_training_steps += 1

    def finish(self) -> None:
        """Go over to evaluation."""
        self.sae.eval()

    def codes(self, x: Any, k: int) -> Any:
        """Return its codes: k a row, or k a row on average over the rows given."""
        part = self.sae.activation_fn
        part.k = type(part.k)(k)
        codes = self.sae.encode(x)
        return codes.to_dense() if codes.is_sparse else codes

    def decode(self, codes: Any) -> Any:
        """Return the reconstructions."""
        return self.sae.decode(codes)

    def dictionary(self) -> tuple[Any, Any]:
        """Return atoms and bias."""
        return self.sae.W_dec.detach(), self.sae.b_dec.detach()


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(training_tasks(Autoencoder), "sae-lens", "torch")
