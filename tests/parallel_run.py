"""The same training in one process and in several: what they end with, to be compared.

In float64 sums in another order differ by 1e-12 at most, so that no choice between two codes hangs
on rounding, and whatever is not computed from all rows shows.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor

from dictlearn.callbacks.revival import DeadAtomRevival
from dictlearn.hidden_states import HiddenStateDataModule, HiddenStates
from dictlearn.hidden_states.batch import TokenStates
from dictlearn.hidden_states.extraction import Integers
from dictlearn.inference import (
    ExchangePursuit,
    Fista,
    Gated,
    Iterative,
    OrthogonalMatchingPursuit,
    PursuitEncoder,
    TwoPhase,
    Unrolled,
    WorkingSet,
)
from dictlearn.losses import AuxK, Matryoshka
from dictlearn.prox import (
    BatchTopK,
    ElasticNet,
    Jump,
    Power,
    Reweighted,
    SignedSoft,
    Soft,
    TopK,
    Weighted,
)
from dictlearn.update import (
    Adam,
    FirstAdam,
    Frozen,
    HessianDiagonalRule,
    Mairal,
    Phased,
    Signum,
    ThenHessianDiagonal,
)
from tests.small_run import BATCH, small_data, small_learner, small_trainer

STEPS = 16
N_ATOMS = 96

Parts = dict[str, Any]


def adam() -> Parts:
    return {"update": Adam(warmup_vectors=0)}


def autoencoder(**more: Any) -> Parts:
    return {"inference": Unrolled(1, "shared", **more), "bias": True, **adam()}


def two_phase(use: Any, **options: Any) -> Parts:
    encoder = options.pop("encoder", None) or Unrolled(1)
    phases = {"encoder_share": 0.3, "use_share": 0.3, "distil": "none", **options}
    return {
        "inference": TwoPhase(encoder, WorkingSet(1e-6), use, **phases),
        "update": Phased(FirstAdam(warmup_vectors=0), ThenHessianDiagonal()),
    }


CASES: dict[str, Callable[[], Parts]] = {
    "adam, topk": lambda: {**adam(), "bias": True},
    "adam, topk with a drawn k": lambda: {**adam(), "prox": TopK(8, sampled=[4, 16])},
    "adam, batch_topk": lambda: {**autoencoder(), "prox": BatchTopK(6)},
    "adam, batch_topk of candidates": lambda: {
        **adam(),
        "prox": BatchTopK(6),
        "inference": Unrolled(2, n_candidates=20, rescreen=True),
    },
    "adam, jump with a target": lambda: {**autoencoder(), "prox": Jump(1.0, target_l0=7.5)},
    "adam, jump at a price": lambda: {**autoencoder(), "prox": Jump(0.01)},
    "adam, steered soft": lambda: {**autoencoder(), "prox": Soft(0.05, target_l0=8.0)},
    "adam, steered power": lambda: {**autoencoder(), "prox": Power(0.05, target_l0=8.0)},
    "adam, gated": lambda: {**adam(), "bias": True, "inference": Gated(), "prox": Soft(0.05)},
    "adam, pursuit encoder": lambda: {**adam(), "inference": PursuitEncoder()},
    "adam, matryoshka": lambda: {
        **autoencoder(),
        "prox": BatchTopK(6),
        "loss": Matryoshka((0.25, 0.5, 1.0)),
    },
    "adam, auxk": lambda: {**autoencoder(), "prox": TopK(4), "loss": AuxK(k_aux=8)},
    "adam, auxk and matryoshka": lambda: {
        **autoencoder(),
        "prox": TopK(4),
        "loss": AuxK(Matryoshka((0.5, 1.0)), coefficient=1.0),
    },
    "signum, lista of weighted": lambda: {
        "update": Signum(warmup_vectors=0),
        "inference": Unrolled(2, "untied", synthesis="learned"),
        "prox": Weighted(0.05, weights=[1.0, 1.5] * (N_ATOMS // 2)),
    },
    "hessian_diagonal, fista": lambda: {
        "update": HessianDiagonalRule(),
        "inference": Iterative(Fista(), tolerance=1e-6),
        "prox": SignedSoft(0.05),
        "bias": True,
    },
    "hessian_diagonal, steered reweighted": lambda: {
        "update": HessianDiagonalRule(),
        "inference": WorkingSet(1e-6),
        "prox": Reweighted(0.05, target_l0=8.0),
    },
    "hessian_diagonal_seed, alista": lambda: {
        "update": HessianDiagonalRule(mode="seed", lr=0.005, floor=0.01),
        "inference": Unrolled(2, "analytic"),
        "prox": ElasticNet(0.1),
    },
    "mairal, steered soft": lambda: {
        "update": Mairal(),
        "inference": WorkingSet(1e-6),
        "prox": Soft(0.1, target_l0=8.0),
        "bias": True,
    },
    "mairal, batch_topk": lambda: {"update": Mairal(), "prox": BatchTopK(6)},
    "frozen, batch_topk": lambda: {
        "update": Frozen(warmup_vectors=0),
        "inference": Unrolled(2, "untied", momentum=True),
        "prox": BatchTopK(6),
    },
    "two_phase, batch_topk": lambda: {**two_phase(ExchangePursuit()), "prox": BatchTopK(5)},
    "two_phase, topk, distilled": lambda: {
        **two_phase(
            OrthogonalMatchingPursuit(),
            encoder=Unrolled(2, "untied"),
            distil="objective",
            distil_every=3,
        ),
        "prox": TopK(5),
        "bias": True,
    },
    "two_phase, soft, distilled codes": lambda: {
        **two_phase(WorkingSet(1e-6), distil="codes"),
        "prox": Soft(0.1, target_l0=8.0),
    },
}


WHOLE_TEXT = "whole text"
"""The case that goes round the text twice, and tells where every vector came from."""

FLOAT32 = "two_phase, batch_topk, float32"
"""The default's composition in the precision that is trained in."""


class Wide(HiddenStateDataModule):
    """The stream in float64."""

    def on_after_batch_transfer(self, batch: HiddenStates, _: int) -> HiddenStates:
        return batch._replace(vectors=batch.vectors.double(), weight=batch.weight.double())


class Job(NamedTuple):
    """Where the model, the text and everything else is."""

    model: Path
    text: Path
    place: Path

    def data(self, steps: int, world: int, **options: Any) -> HiddenStateDataModule:
        """The stream of one of `world` processes, which together have batches of `BATCH`."""
        own = {"batch_size": BATCH // world, "token_weight_exponent": 0.5, **options}
        return small_data(self.model, self.text, self.place / "data", steps=steps * world, **own)


@cache
def wide_data(job: Job, world: int) -> HiddenStateDataModule:
    """The stream of all cases in float64; a case need not extract what one before it did."""
    data = job.data(STEPS, world)
    data.__class__ = Wide
    data.prepare_data()
    data.setup()
    for extractor in (data._train, data._validation):
        extractor.extract = _remembering(extractor.extract)  # type: ignore[assignment, method-assign]
    return data


def _remembering(extract: Callable[[Integers], TokenStates]) -> Callable[[Integers], TokenStates]:
    known: dict[bytes, TokenStates] = {}

    def remembered(numbers: Integers) -> TokenStates:
        key = numbers.tobytes()
        if key not in known:
            known[key] = extract(numbers)
        return known[key]

    return remembered


def train(job: Job, case: str, world: int) -> dict[str, Tensor]:
    """Train as one of `world` processes; return everything that is learned, kept and told."""
    if case == WHOLE_TEXT:
        return origins(job, world)
    narrow = case == FLOAT32
    data = job.data(STEPS, world) if narrow else wide_data(job, world)
    made = CASES[case.removesuffix(", float32")]()
    learner = small_learner(data, **{"n_atoms": N_ATOMS, "dead_after_vectors": 3 * BATCH, **made})
    revival = DeadAtomRevival(4 * BATCH, 0.8, duplicate_cosine=0.4)
    trainer = _trainer(
        job, world, revival, gradient_clip_val=0.05, limit_val_batches=1.0, val_check_interval=8
    )
    trainer.fit(learner if narrow else learner.double(), datamodule=data)
    return ended(trainer, learner, revival)


def _trainer(job: Job, world: int, callback: pl.Callback, **arguments: Any) -> pl.Trainer:
    strategy = "ddp" if world > 1 else "auto"
    return small_trainer(job.place, [callback], devices=world, strategy=strategy, **arguments)


class Origins(pl.Callback):
    """Keeps where the vectors of every step came from."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.steps.append(torch.stack([batch.document, batch.position, batch.layer], 1))


def origins(job: Job, world: int) -> dict[str, Tensor]:
    """Go round the text more than twice; return document, position and layer, `[steps, n, 3]`."""
    data = job.data(1, world, batch_size=1024 // world, layers=[0])
    data.setup()
    n_vectors = int(data._plan.rows.sum())
    data.max_vectors = int(2.2 * n_vectors)
    seen = Origins()
    _trainer(job, world, seen).fit(small_learner(data), datamodule=data)
    return {"origins": torch.stack(seen.steps), "vectors": torch.tensor(n_vectors)}


def ended(trainer: pl.Trainer, learner: Any, revival: DeadAtomRevival) -> dict[str, Tensor]:
    """Return all state by name, as tensors."""
    found = {key: value.detach().clone() for key, value in learner.state_dict().items()}
    names = {id(value): name for name, value in learner.named_parameters()}
    for parameter, state in trainer.optimizers[0].state.items():
        for key, value in state.items():
            found[f"optimizer/{names[id(parameter)]}/{key}"] = value.detach().clone()
    numbers = {
        "vectors_seen": learner.vectors_seen,
        "revived": revival.revived,
        "merged": revival.merged,
        **learner.held_out_figures,
        **{k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("train/")},
    }
    found |= {key: torch.tensor(float(value)) for key, value in numbers.items()}
    return found


def work(rank: int, job: Job, cases: Sequence[str], world: int) -> None:
    """Be one of `world` processes: train every case and leave what it ended with on disk."""
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    meet = f"file://{job.place}/meet"
    torch.distributed.init_process_group("gloo", meet, rank=rank, world_size=world)
    for case in cases:
        file = job.place / f"{case}-{rank}.pt"
        torch.save(train(job, case, world), file.with_suffix(".part"))
        file.with_suffix(".part").rename(file)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


class Together:
    """Processes that train the cases, one after the other, while others do something else.

    Args:
        job: where everything is.
        cases: by name.
        world: number of processes.
    """

    def __init__(self, job: Job, cases: Sequence[str], world: int = 2) -> None:
        self.job, self.world = job, world
        self.context: Any = torch.multiprocessing.start_processes(  # type: ignore[attr-defined, no-untyped-call]
            work, (job, cases, world), nprocs=world, join=False, daemon=True, start_method="spawn"
        )

    def results(self, case: str, seconds: float = 300) -> list[dict[str, Tensor]]:
        """Wait for a case; return what every process ended with, or raise what one has raised."""
        files = [self.job.place / f"{case}-{rank}.pt" for rank in range(self.world)]
        last = time.monotonic() + seconds
        while not all(file.exists() for file in files):
            if self.context.join(timeout=0.1) or time.monotonic() > last:
                missing = [file.name for file in files if not file.exists()]
                raise RuntimeError(f"{missing} did not come within {seconds} seconds")
        return [torch.load(file, weights_only=True) for file in files]

    def end(self) -> None:
        """Leave no process behind."""
        for process in self.context.processes:
            process.kill()
            process.join()
