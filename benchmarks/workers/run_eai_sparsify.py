"""EleutherAI/sparsify: its SparseCoder and default optimizer, stepped as its trainer steps them.

Its own training loop needs a causal language model and CUDA, so the loop over batches is ours.
"""

from __future__ import annotations

from typing import Any

import torch
from common import Settings, serve, training_tasks
from schedulefree import ScheduleFreeWrapper
from sparsify import SparseCoder, SparseCoderConfig
from sparsify.sign_sgd import SignSGD


class Autoencoder:
    """TopK with schedule-free Signum, its default."""

    def __init__(self, settings: Settings, first: Any) -> None:
        config = SparseCoderConfig(num_latents=settings["n_atoms"], k=settings["k"])
        self.coder = SparseCoder(first.shape[1], config, device=settings["device"])
        rate = settings.get("lr") or 5e-3 / (settings["n_atoms"] / 2**14) ** 0.5
        self.optimizer = ScheduleFreeWrapper(
            SignSGD(self.coder.parameters(), lr=rate), momentum=0.95
        )
        self.optimizer.train()
        self.coder.b_dec.data = first.mean(0)
        self.idle = torch.zeros(settings["n_atoms"], dtype=torch.long, device=settings["device"])
        self.fvu = 0.0

    def step(self, batch: Any) -> None:
        """Take one whole training step."""
        self.coder.set_decoder_norm_to_unit_norm()
        fired = torch.zeros_like(self.idle, dtype=torch.bool)
        variance = (batch - batch.mean(0)).pow(2).sum()
        found = self.coder(x=batch, y=batch, dead_mask=None, total_variance=variance)
        fired[found.latent_indices.flatten()] = True
        self.fvu = float(found.fvu.detach())
        found.fvu.backward()
        self.coder.remove_gradient_parallel_to_decoder_directions()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.idle += len(batch)
        self.idle[fired] = 0

    def finish(self) -> None:
        """Take the averaged weights of the schedule-free optimizer."""
        self.optimizer.eval()

    def codes(self, x: Any, k: int) -> Any:
        """Return its codes, k a row."""
        self.coder.cfg.k = k
        values, indices, _ = self.coder.encode(x)
        return x.new_zeros(len(x), self.coder.num_latents).scatter_(1, indices, values)

    def decode(self, codes: Any) -> Any:
        """Return the reconstructions."""
        return codes @ self.coder.W_dec + self.coder.b_dec

    def dictionary(self) -> tuple[Any, Any]:
        """Return atoms and bias."""
        return self.coder.W_dec.detach(), self.coder.b_dec.detach()


if __name__ == "__main__":
    serve(training_tasks(Autoencoder), "eai-sparsify", "torch")
