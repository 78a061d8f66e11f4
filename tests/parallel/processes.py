"""Real processes that hold a dictionary together: forked, talking by gloo, gone when done."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed import FileStore  # type: ignore[attr-defined]
from torch.multiprocessing.spawn import start_processes

from dictlearn import processes
from dictlearn.mesh import Mesh, Processes

Task = Callable[[Mesh], Any]


def on_processes(shards: int, place: Path, task: Task, copies: int = 1) -> list[Any]:
    """Return what `task` returns in every process, plain tensors and values, by rank.

    Args:
        shards: processes that hold one dictionary together.
        place: an empty folder.
        task: what each of them does.
        copies: how many such groups there are.
    """
    place.mkdir(exist_ok=True)
    start_processes(  # type: ignore[no-untyped-call]
        _run, (shards, copies, place, task), shards * copies, daemon=True, start_method="fork"
    )
    files = (place / f"{rank}.pt" for rank in range(shards * copies))
    return [torch.load(file, weights_only=True) for file in files]


def _run(rank: int, shards: int, copies: int, place: Path, task: Task) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        store=FileStore(str(place / "store"), shards * copies),
        rank=rank,
        world_size=shards * copies,
        timeout=timedelta(seconds=60),
    )
    table = torch.arange(shards * copies).view(copies, shards)
    groups = {}
    for ranks in (*table.tolist(), *table.T.tolist()):  # everyone makes every group
        groups[tuple(ranks)] = distributed.new_group(ranks)
    copy, shard = divmod(rank, shards)
    mesh = Mesh(
        Processes(copy, copies, groups[tuple(table[:, shard].tolist())]),
        Processes(shard, shards, groups[tuple(table[copy].tolist())]),
    )
    with processes.among(mesh.data.group):
        torch.save(task(mesh), place / f"{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()
