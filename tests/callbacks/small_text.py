"""A small text with planted factors, and the Lightning parts that read it.

Atom c fires on word c at layer 0, and more quietly on the token after word c at layer 3. Run as a
program, it validates once and writes the page; the test of several processes starts it so.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dictlearn.callbacks.gallery import FactorGallery
from dictlearn.codes import Codes

WORDS = ("the", "bank", "of", "a", "river", "was", "old", "<script>", "[SEP]", "&", '"', "well")
LAYERS = (0, 3)
N_ATOMS = len(WORDS) + 2  # the last two never fire


class Rows(NamedTuple):
    vectors: Tensor
    layer: Tensor
    token: Tensor
    document: Tensor
    position: Tensor
    weight: Tensor


class SmallText(pl.LightningDataModule):
    """Twelve documents of twenty words; every process validates its own share of the batches."""

    layers = LAYERS
    transformer = SimpleNamespace(name="tiny <bert>")
    text = SimpleNamespace(name="small")

    def __init__(self, documents: int = 12, length: int = 20) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        self.words = torch.randint(len(WORDS), (documents, length), generator=draw)
        self.store = SimpleNamespace(document_ids=[f"notes {d}" for d in range(documents)])

    def batches(self) -> Iterator[Rows]:
        documents, length = self.words.shape
        position = torch.arange(length)
        for document in range(documents):
            for layer in LAYERS:
                token = self.words[document]
                before = token.roll(1)
                strength = (1 + 0.01 * position + 0.1 * document) / (1 + layer)
                fires = token if layer == 0 else before
                yield Rows(
                    torch.stack([fires, strength], 1).float(),
                    torch.full((length,), layer),
                    token,
                    torch.full((length,), document),
                    position,
                    torch.ones(length),
                )

    def val_dataloader(self) -> Iterable[Rows]:
        assert self.trainer is not None
        mine = list(self.batches())[self.trainer.global_rank :: self.trainer.world_size]
        return DataLoader(mine, batch_size=None)  # type: ignore[arg-type]

    def train_dataloader(self) -> Iterable[Rows]:
        return DataLoader(list(self.batches())[:2], batch_size=None)  # type: ignore[arg-type]

    def context(
        self, document: int, position: int, before: int, after: int
    ) -> tuple[list[int], int]:
        first = max(0, position - before)
        return self.words[document, first : position + after + 1].tolist(), position - first

    def decode_tokens(self, ids: Any) -> list[str]:
        return [WORDS[i] for i in ids]


class Planted(pl.LightningModule):
    """Hands out the planted codes, dense or k-sparse; `loudness` 0 silences all factors."""

    vectors_seen = 4096

    def __init__(self, form: str = "dense", loudness: float = 1.0) -> None:
        super().__init__()
        self.form, self.loudness = form, loudness
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: Rows, batch_idx: int) -> Tensor:
        return self.weight.square().sum()

    def validation_step(self, batch: Rows, batch_idx: int) -> dict[str, Any]:
        self.log("val/fvu", 0.25, sync_dist=True)
        self.log("val/fvu_layer_3", 0.5, sync_dist=True)
        atom = batch.vectors[:, 0].long()
        code = self.loudness * batch.vectors[:, 1]
        if self.form == "dense":
            dense = torch.zeros(len(atom), N_ATOMS).scatter(1, atom[:, None], code[:, None])
            return {"codes": Codes.from_dense(dense)}
        other = (atom + 1) % N_ATOMS  # a kept place with a zero in it
        values = torch.stack([torch.zeros_like(code), code], 1)
        return {"codes": Codes(values, torch.stack([other, atom], 1), N_ATOMS)}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    """Return a silent trainer on the CPU."""
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
    }
    return pl.Trainer(callbacks=list(callbacks), **{**quiet, **options})


def gallery(run_dir: Path, **options: Any) -> FactorGallery:
    """Return a gallery for a text of two hundred tokens a layer."""
    return FactorGallery(run_dir, **{"per_layer": 20, "sample": 4, "window": 3, **options})


def main() -> None:
    """Validate on all processes of the group."""
    made = trainer(gallery(Path(sys.argv[1])), strategy="ddp", devices=2)
    made.validate(Planted(), datamodule=SmallText(), verbose=False)
    made.strategy.barrier()  # none leaves while another still speaks to it
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
