"""A dictionary over several processes against one process that has all of it: memory and time.

    python benchmarks/dictionary_parallel.py [--shards 2] [--n-atoms 8192,32768] [--device cuda]

Whole training steps (forward, loss, backward, update) of the learner with `prox=topk
inference=unrolled update=adam` on the same rows, in fresh processes with as many threads each;
medians of seconds after a step to warm up, and the peak memory of the largest process above
what it had before there was a dictionary. The last table is one unrolled layer, forward and
backward, with our collectives and with torch's DTensor. On CUDA every process has a GPU of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh

from benchmarks import ours
from benchmarks.measure import Clock, peak_bytes, resident_bytes
from benchmarks.table import Cell, Table, machine, write_json
from dictlearn.mesh import Mesh, Processes


def shared_out(arguments: argparse.Namespace) -> Mesh:
    """Let the processes know each other; return who holds what."""
    device = f"cuda:{arguments.rank}" if arguments.device == "cuda" else "cpu"
    if device != "cpu":
        torch.cuda.set_device(device)
    distributed.init_process_group(
        "nccl" if device != "cpu" else "gloo",
        f"file://{arguments.meet}",
        rank=arguments.rank,
        world_size=arguments.shards,
    )
    return Mesh(dictionary=Processes(arguments.rank, arguments.shards, distributed.group.WORLD))


def one(arguments: argparse.Namespace) -> None:
    """Print memory and time of the steps of one of the processes, as JSON."""
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(arguments.batch, arguments.width, generator=generator).to(arguments.device)
    mesh = Mesh() if arguments.shards == 1 else shared_out(arguments)
    if arguments.layer:
        found = layers(x, arguments, mesh)
    else:
        before = resident_bytes(arguments.device)
        overrides = ["prox=topk", f"prox.k={arguments.k}", "inference=unrolled", "update=adam"]
        overrides += ["inference.selection=exact", "inference.initial_step=0.5"]
        overrides += [
            f"dictionary.n_atoms={arguments.n_atoms}",
            "dictionary.initialization=gaussian",
        ]
        strategy = SimpleNamespace(mesh=mesh)
        run = ours.Run(overrides, x, len(x), 100 * len(x), revive=False, strategy=strategy)
        # What the start of the whole dictionary took is given back before the steps are measured.
        resident_bytes(arguments.device)
        found = timed("step", lambda: run.step(x), arguments.repeats, arguments.device)
        found["bytes"] = peak_bytes(arguments.device) - before
    print(json.dumps(found), flush=True)


def timed(name: str, step: Callable[[], Any], repeats: int, device: str) -> dict[str, float]:
    """Return the medians of the CPU and wall seconds of a step, after one to warm up."""
    found = []
    for _ in range(repeats + 1):
        if distributed.is_initialized():
            distributed.barrier()
        clock = Clock(device)
        step()
        found.append(clock.read())
    return {
        f"{name} {kind}": statistics.median(one[kind] for one in found[1:])
        for kind in ("cpu", "wall")
    }


def layers(x: Tensor, arguments: argparse.Namespace, mesh: Mesh) -> dict[str, float]:
    """Return the time of `relu(a + (x - a Phi) Phi^T)` twice, with gradients of the atoms."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    shards, m = mesh.dictionary, arguments.n_atoms
    atoms = torch.randn(m, x.shape[1], generator=torch.Generator().manual_seed(1)).to(x)
    atoms = torch.nn.functional.normalize(atoms, dim=1)
    mine = atoms[shards.place(m)].clone().requires_grad_()
    device_mesh = init_device_mesh(x.device.type, (shards.count,))
    parts = distribute_tensor(atoms, device_mesh, [Shard(0)]).requires_grad_()
    rows = distribute_tensor(x, device_mesh, [Replicate()])

    def plain() -> Tensor:
        a = torch.relu(x @ mine.T - 0.1)
        residual = shards.spread(x - shards.sum(a @ mine))
        a = torch.relu(a + residual @ mine.T - 0.1)
        loss = (x - shards.sum(a @ mine)).square().sum()
        torch.autograd.backward(loss)
        return loss.detach()

    def tensors() -> Tensor:
        a = torch.relu(rows @ parts.T - 0.1)
        a = torch.relu(a + (rows - a @ parts) @ parts.T - 0.1)
        loss = (rows - a @ parts).square().sum()
        torch.autograd.backward(loss)
        return loss.detach().full_tensor()  # type: ignore[attr-defined, no-any-return]

    torch.testing.assert_close(plain(), tensors(), rtol=1e-4, atol=0.0)
    assert mine.grad is not None
    assert parts.grad is not None
    missed = mine.grad - parts.grad.to_local()  # type: ignore[attr-defined]
    assert missed.norm() < 1e-4 * mine.grad.norm()
    more = (arguments.repeats, arguments.device)
    return timed("plain", plain, *more) | timed("dtensor", tensors, *more)


def measured(arguments: argparse.Namespace, shards: int, *more: str) -> dict[str, float]:
    """Run so many processes; return the largest of each of their figures."""
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, __file__, f"--shards={shards}", f"--meet={place}/meet", *more]
        for name in ("width", "batch", "k", "repeats", "threads", "device"):
            command.append(f"--{name}={getattr(arguments, name)}")
        started = [
            subprocess.Popen([*command, f"--rank={rank}"], stdout=subprocess.PIPE, text=True)
            for rank in range(shards)
        ]
        try:
            told = [json.loads(process.communicate(timeout=1800)[0]) for process in started]
        finally:
            for process in started:
                process.kill()
    return {name: max(one[name] for one in told) for name in told[0]}


def compare(arguments: argparse.Namespace) -> dict[str, Cell]:
    """Print both tables; return the figures."""
    size = f"width {arguments.width}, batch {arguments.batch}, k={arguments.k}"
    print(f"{machine(arguments.device, arguments.threads)}\n")
    columns = ["n_atoms", "processes", "MB in each", "CPU ms of each", "wall ms"]
    columns += ["of the memory", "of the CPU time", "of the wall time"]
    steps = Table(f"Dictionary parallel, {size}, {arguments.device}", columns)
    layer = Table(
        f"One more unrolled layer and its gradients, {size}, {arguments.shards} processes",
        ["n_atoms", "collectives", "CPU ms of each", "wall ms"],
    )
    figures: dict[str, Cell] = {}
    for n_atoms in arguments.n_atoms:
        alone: dict[str, float] = {}
        for shards in (1, arguments.shards):
            found = measured(arguments, shards, f"--n-atoms={n_atoms}")
            alone = alone or found
            share = {key: found[key] / alone[key] for key in ("bytes", "step cpu", "step wall")}
            shown = {
                "mb": found["bytes"] / 1e6,
                "cpu_ms": 1e3 * found["step cpu"],
                "wall_ms": 1e3 * found["step wall"],
            }
            steps.row(n_atoms, shards, *shown.values(), *share.values())
            figures |= {f"parallel/{n_atoms}/{shards}/{key}": shown[key] for key in shown}
        found = measured(arguments, arguments.shards, f"--n-atoms={n_atoms}", "--layer")
        for name, told in (("plain", "ours"), ("dtensor", "DTensor")):
            spent = [1e3 * found[f"{name} {kind}"] for kind in ("cpu", "wall")]
            layer.row(n_atoms, told, *spent)
            figures[f"layer/{n_atoms}/{name}_cpu_ms"] = spent[0]
    steps.print()
    layer.print()
    return figures


def main(argv: list[str] | None = None) -> None:
    """Print the tables, or be one of the processes that are measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=2, help="processes with one dictionary")
    parser.add_argument("--n-atoms", default="8192,32768", help="sizes, with commas between")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of every process")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--quick", action="store_true", help="a tiny table")
    parser.add_argument("--json", type=Path, default=None, help="file for the figures")
    parser.add_argument("--rank", type=int, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--meet", default="", help=argparse.SUPPRESS)
    parser.add_argument("--layer", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.rank is not None:
        arguments.n_atoms = int(arguments.n_atoms)
        one(arguments)
        return
    arguments.n_atoms = [int(number) for number in str(arguments.n_atoms).split(",")]
    if arguments.quick:
        arguments.n_atoms, arguments.width, arguments.batch, arguments.repeats = [256], 32, 64, 1
    write_json(arguments.json, compare(arguments))


if __name__ == "__main__":
    main()
