"""What every shard computes, forward and backward, is its part of what one process computes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dictlearn.inference import Fista, FistaSeed, GreedyFista, Inference, Ista, Iterative, Unrolled
from dictlearn.losses import AuxK, Loss, Matryoshka, Objective
from dictlearn.mesh import Mesh, Processes
from dictlearn.prox import (
    BatchTopK,
    ElasticNet,
    Jump,
    Prox,
    Relu,
    Reweighted,
    SignedSoft,
    Soft,
    TopK,
)
from dictlearn.sharding import share_out_learned
from dictlearn.update import Adam
from tests.parallel.processes import on_processes
from tests.parallel.small import Learned, M


def same(made: Callable[[], Learned], place: Path, shards: int = 2) -> None:
    """Compare what `shards` processes compute with what one does."""
    alone = made().results()

    def task(mesh: Mesh) -> dict[str, Tensor]:
        learned = made()
        share_out_learned(learned, mesh)
        assert len(learned.dictionary.atoms) == M // shards
        return learned.results()

    parts = on_processes(shards, place, task)
    assert any(name.startswith("d ") for name in alone)
    for name, value in alone.items():
        of_atoms = name.startswith("d ") and value.ndim > 0 and len(value) == M
        for rank, part in enumerate(parts):
            expected = value[Processes(rank, shards).place(M)] if of_atoms else value
            torch.testing.assert_close(part[name], expected, rtol=1e-9, atol=1e-11, msg=name)
    for name in ("d atoms", "codes"):
        assert alone[name].any()


def unrolled(*arguments: Any, **options: Any) -> Callable[[], Inference]:
    return lambda: Unrolled(*arguments, **{"selection": "exact", **options})


SETTINGS: dict[str, tuple[Prox, Callable[[], Inference]]] = {
    "topk": (TopK(4), unrolled(2)),
    "topk, more than a shard has": (TopK(30), unrolled(2)),
    "topk, sampled": (dataclasses.replace(TopK(4, (2, 8)), k=3), unrolled(2)),
    "topk, one layer": (TopK(4), unrolled(1, "shared")),
    "topk, momentum": (TopK(4), unrolled(3, momentum=True)),
    "topk, untied": (TopK(4), unrolled(3, "untied", synthesis="learned")),
    "topk, analytic": (TopK(4), unrolled(3, "analytic")),
    "batch_topk": (BatchTopK(4), unrolled(2)),
    "jump": (Jump(1.0, 0.5, target_l0=6), unrolled(2)),
    "jump at a price": (Jump(0.01, 0.5), unrolled(2)),
    "soft": (Soft(0.1), unrolled(3)),
    "soft, momentum": (Soft(0.1), unrolled(3, "shared", momentum=True, synthesis="learned")),
    "signed_soft": (SignedSoft(0.1), unrolled(2)),
    "elastic_net": (ElasticNet(0.1, ridge=0.5), unrolled(3)),
    "relu": (Relu(), unrolled(1, "shared")),
    "reweighted": (Reweighted(0.1), unrolled(2)),
    "ista": (Soft(0.1), lambda: Iterative(Ista(), tolerance=0, max_steps=40)),
    "fista": (Soft(0.1), lambda: Iterative(Fista(), tolerance=1e-4)),
    "fista, signed": (SignedSoft(0.1), lambda: Iterative(Fista(), tolerance=1e-4)),
    "fista, ridge": (ElasticNet(0.1, ridge=0.5), lambda: Iterative(Fista(), tolerance=1e-4)),
    "fista, reweighted": (Reweighted(0.1), lambda: Iterative(Fista(), tolerance=1e-3)),
    "fista, no price": (Relu(), lambda: Iterative(Fista(), tolerance=0, max_steps=40)),
    "greedy_fista": (Soft(0.1), lambda: Iterative(GreedyFista(), tolerance=1e-4)),
    "fista_seed": (Soft(0.1), lambda: FistaSeed(50)),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_two_shards_compute_what_one_process_computes(name: str, tmp_path: Path) -> None:
    prox, inference = SETTINGS[name]
    same(lambda: Learned(inference(), prox, Objective(), Adam()), tmp_path)


LOSSES: dict[str, Loss] = {
    "matryoshka": Matryoshka((0.125, 0.25, 0.75, 1.0)),
    "auxk": AuxK(k_aux=3),
    "auxk, all candidates": AuxK(k_aux=40),
    "auxk, few candidates": AuxK(k_aux=2, max_candidates=4),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("prox", [TopK(4), Soft(0.1)], ids=["topk", "soft"])
def test_other_losses_are_shared_out_as_well(name: str, prox: Prox, tmp_path: Path) -> None:
    same(lambda: Learned(unrolled(2)(), prox, LOSSES[name], Adam()), tmp_path)


def test_four_shards_compute_what_one_process_computes(tmp_path: Path) -> None:
    same(lambda: Learned(unrolled(2)(), BatchTopK(4), AuxK(k_aux=3), Adam()), tmp_path, 4)
