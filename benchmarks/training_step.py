"""A training step of a TopK autoencoder: ours beside the peers', same vectors, same machine.

    python benchmarks/training_step.py [--vectors FILE] [--device cuda] [--memory] [--quick]

Whole steps (forward, loss, backward, update, schedule, bookkeeping of dead atoms), taken in turn so
that all see the same load; medians of CPU and wall seconds. Ours is the learner of `train.py` with
`inference=autoencoder prox=topk`; the peers are stepped by their own trainers. `--memory` measures
the peak memory of a step in fresh processes instead, also with update rules that keep less than
Adam (whose first moment we keep in bfloat16); ours is the median of three processes, because what
the allocator keeps differs by 40 MB.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import Tensor

from benchmarks import ours, peers, vectors
from benchmarks.measure import Clock, peak_bytes, resident_bytes
from benchmarks.table import Cell, Table, machine, ratio, write_json

BARS = {"eai-sparsify": 2.5, "dictionary-learning": 5.5, "sae-lens": 6.0}
TRAINED = ("eai-sparsify", "dictionary-learning", "sae-lens", "overcomplete")
AUTOENCODER = ("inference=autoencoder", "prox=topk")
COMPOSITIONS: dict[str, tuple[str, ...]] = {
    "dictlearn": (),
    "dictlearn update=signum": ("update=signum",),
    "dictlearn update=hessian_diagonal": ("update=hessian_diagonal",),
}
"""What the memory of a step is measured with; the first is held to the bar."""

Step = Callable[[], tuple[float, float]]


def our_overrides(n_atoms: int, k: int) -> list[str]:
    """Return the config of a TopK autoencoder."""
    return [*AUTOENCODER, f"prox.k={k}", f"dictionary.n_atoms={n_atoms}"]


def our_step(x: Tensor, n_atoms: int, k: int, batch: int, *more: str) -> Step:
    """Return a function that takes one of our steps and tells its CPU and wall seconds."""
    run = ours.Run([*our_overrides(n_atoms, k), *more], x, batch, 100 * batch)
    count = 0

    def step() -> tuple[float, float]:
        nonlocal count
        first = (count * batch) % (len(x) - batch + 1)
        count += 1
        clock = Clock(x.device.type)
        run.step(x[first : first + batch])
        spent = clock.read()
        return spent["cpu"], spent["wall"]

    return step


def products(x: Tensor, n_atoms: int, batch: int) -> Step:
    """Return a function that does the five dense products of a dense step, and nothing else."""
    rows, atoms = x[:batch], torch.randn(n_atoms, x.shape[1], device=x.device)
    codes = torch.randn(len(rows), n_atoms, device=x.device)

    def step() -> tuple[float, float]:
        clock = Clock(x.device.type)
        _ = rows @ atoms.T, codes @ atoms, rows @ atoms.T, codes.T @ rows, codes.T @ rows
        spent = clock.read()
        return spent["cpu"], spent["wall"]

    return step


def peer_step(worker: peers.Worker, file: Path, arguments: argparse.Namespace) -> Step:
    """Return a function that takes one of a peer's steps."""
    worker.call("start", **settings(arguments), vectors=str(file))

    def step() -> tuple[float, float]:
        found = worker.call("steps", n=1)
        return found["cpu"][0], found["wall"][0]

    return step


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what every worker is told."""
    return {
        "method": "topk",
        "n_atoms": arguments.n_atoms,
        "k": arguments.k,
        "batch": arguments.batch,
        "n_vectors": 100 * arguments.batch,
        "device": arguments.device,
        "seed": 0,
    }


def speed(arguments: argparse.Namespace) -> dict[str, Cell]:
    """Time the steps in turn, and print the table."""
    rows = vectors.rows(arguments)
    x = rows.load()[0].to(arguments.device)
    arguments.batch = min(arguments.batch, len(x))
    steps: dict[str, Step] = {
        "dictlearn": our_step(x, arguments.n_atoms, arguments.k, arguments.batch),
        "five dense products": products(x, arguments.n_atoms, arguments.batch),
    }
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        for name in () if arguments.no_peers else TRAINED:
            try:
                worker = stack.enter_context(peers.Worker(name, arguments.data, arguments.threads))
                steps[worker.label] = peer_step(worker, rows.train, arguments)
            except (peers.MissingPeerError, RuntimeError) as reason:
                missing[name] = str(reason)
        taken = in_turn(steps, arguments.repeats)
    return step_table(arguments, rows.about, taken, missing)


def in_turn(steps: dict[str, Step], repeats: int) -> dict[str, tuple[float, float]]:
    """Return the median CPU and wall seconds of every step; the first round is a warm-up."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for turn in range(repeats + 1):
        for name, step in steps.items():
            spent = step()
            if turn:
                taken[name].append(spent)
    return {
        name: (statistics.median(cpu for cpu, _ in found), statistics.median(w for _, w in found))
        for name, found in taken.items()
    }


def step_table(
    arguments: argparse.Namespace,
    about: str,
    taken: dict[str, tuple[float, float]],
    missing: dict[str, str],
) -> dict[str, Cell]:
    """Print the table of steps; return the figures."""
    size = f"n_atoms={arguments.n_atoms}, k={arguments.k}, batch {arguments.batch}"
    print(f"{about}; {size}\n{machine(arguments.device, arguments.threads)}\n")
    columns = ["step", "CPU ms", "wall ms", "vectors / CPU s", "vectors / s", "ours is faster"]
    table = Table(f"TopK training step, {size}, {arguments.device}", columns)
    best, figures = taken["dictlearn"], dict[str, Cell]()
    clock = 1 if arguments.device == "cuda" else 0  # on a GPU, wall time is what counts
    for name, (cpu, wall) in taken.items():
        short = name.split()[0]
        times = (cpu, wall)[clock] / best[clock]
        bar = BARS.get(short)
        beside = ratio(times, bar, at_most=False) if bar else f"{times:.2f}"
        rates = round(arguments.batch / cpu), round(arguments.batch / wall)
        table.row(name, 1e3 * cpu, 1e3 * wall, *rates, beside)
        figures |= {f"step/{short}/cpu_ms": 1e3 * cpu, f"step/{short}/wall_ms": 1e3 * wall}
        figures[f"step/{short}/ours_faster"] = times
    for name, reason in missing.items():
        table.row(name, None, None, None, None, reason)
    table.print()
    return figures


def memory(arguments: argparse.Namespace) -> dict[str, Cell]:
    """Measure the peak memory of two steps of ours and of a peer, each in a fresh process."""
    m, d, batch = (1024, 64, 512) if arguments.quick else (24_576, 768, 4096)
    file = arguments.data / "benchmarks" / f"gaussian_{batch}_{d}.npy"
    file.parent.mkdir(parents=True, exist_ok=True)
    np.save(file, np.random.default_rng(0).standard_normal((batch, d), dtype=np.float32))
    arguments.n_atoms, arguments.batch = m, batch
    command = [sys.executable, __file__, "--memory-of", str(file), f"--n-atoms={m}"]
    command += [f"--batch={batch}", f"--device={arguments.device}", f"--k={arguments.k}"]
    found = {name: median_of(command, more) for name, more in COMPOSITIONS.items()}
    missing = {}
    for name in () if arguments.no_peers else TRAINED:
        try:
            with peers.Worker(name, arguments.data, arguments.threads) as worker:
                start = worker.call("start", **settings(arguments), vectors=str(file))
                peak = worker.call("steps", n=2)["peak_bytes"]
                found[worker.label] = start | {"peak": peak}
        except (peers.MissingPeerError, RuntimeError) as reason:
            missing[name] = str(reason)
    return memory_table(arguments, found, missing)


def median_of(command: list[str], overrides: tuple[str, ...], times: int = 3) -> dict[str, int]:
    """Return the memory of our step in the process with the median peak."""
    asked = [*command, f"--composition={' '.join(overrides)}"]
    every = [json.loads(subprocess.check_output(asked, text=True)) for _ in range(times)]
    median: dict[str, int] = sorted(every, key=lambda e: e["peak"] - e["imported"])[times // 2]
    return median


def memory_table(
    arguments: argparse.Namespace, found: dict[str, dict[str, int]], missing: dict[str, str]
) -> dict[str, Cell]:
    """Print the table of peaks; return the figures. A share is that of our first composition."""
    size = f"n_atoms={arguments.n_atoms}, batch {arguments.batch}"
    print(f"{machine(arguments.device, arguments.threads)}\n")
    columns = ["step", "peak MB", "above imports MB", "above before the step MB", "ours / it"]
    table = Table(f"Peak memory of a TopK training step, {size}, {arguments.device}", columns)
    figures: dict[str, Cell] = {}
    best = found["dictlearn"]["peak"] - found["dictlearn"]["imported"]
    for name, entry in found.items():
        ours_too = name in COMPOSITIONS
        short, peak = name.replace(" ", "_") if ours_too else name.split()[0], entry["peak"]
        above, of_step = peak - entry["imported"], peak - entry["started"]
        share = best / above
        held = short == "dictionary-learning"
        beside = ratio(share, 1 / 3, at_most=True) if held else f"{share:.2f}"
        table.row(name, round(peak / 1e6), round(above / 1e6), round(of_step / 1e6), beside)
        figures |= {f"memory/{short}/peak_mb": peak / 1e6, f"memory/{short}/above_mb": above / 1e6}
        figures |= {f"memory/{short}/step_mb": of_step / 1e6, f"memory/{short}/ours_over_it": share}
    for name, reason in missing.items():
        table.row(name, None, None, None, reason)
    table.print()
    return figures


def memory_of(arguments: argparse.Namespace) -> None:
    """Print what two of our steps take, as JSON; runs in a process of its own."""
    device = arguments.device
    imported = resident_bytes(device)
    x = torch.from_numpy(np.load(arguments.memory_of)).to(device)
    more = arguments.composition.split()
    step = our_step(x, arguments.n_atoms, arguments.k, arguments.batch, *more)
    started = resident_bytes(device)
    step()
    step()
    print(json.dumps({"imported": imported, "started": started, "peak": peak_bytes(device)}))


def main(argv: list[str] | None = None) -> None:
    """Print the tables that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    vectors.add_arguments(parser, n_vectors=60_000)
    parser.add_argument("--n-atoms", type=int, default=3072)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--memory", action="store_true", help="peak memory, not speed")
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--composition", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    vectors.configure(arguments)
    if arguments.memory_of:
        memory_of(arguments)
        return
    if arguments.quick:
        arguments.repeats, arguments.n_atoms, arguments.batch = 1, 512, 512
    write_json(arguments.json, (memory if arguments.memory else speed)(arguments))


if __name__ == "__main__":
    main()
