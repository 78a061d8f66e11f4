"""Dictionary learning with exact l1 codes: ours beside the peers', same vectors and first atoms.

    python benchmarks/exact_learning.py [--vectors FILE] [--device cuda] [--quick]

Ours is the learner of `train.py` with `inference=working_set prox=soft`, every row to a relative
gap of 1e-3, once with L0 held at 32, as the prototype that the goal was measured with (transcribed,
CPU), and once at one price, as the peers: SPAMS is `trainDL`, online with compiled homotopy;
scikit-learn is `MiniBatchDictionaryLearning` by coordinate descent, on one batch; the seed is its
500 FISTA steps, on one batch, without an update of atoms. All learn in turns, because the speed of
a machine drifts. What was learned is compared by the objective of held-out rows at that price,
with one solver for all.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import ours, peers, vectors
from benchmarks.measure import Clock, training_order
from benchmarks.table import Cell, Table, machine, ratio, write_json
from dictlearn.inference import FistaSeed, WorkingSet
from dictlearn.kernels import reconstruct
from dictlearn.prox import Soft

COMPOSITION = ("inference=working_set", "prox=soft", "update=hessian_diagonal")
TOLERANCE, TURNS, L0 = 1e-3, 4, 32
OURS, PROTOTYPE = "dictlearn-at-L0-32", "prototype-at-L0-32"
AT_PRICE, SEED = "dictlearn-at-price", "seed FISTA 500, codes only"
BAR, TIMES = 8000, 8000 / 4200
"""Vectors per CPU second, and how often that is the prototype's lowest figure."""

Order = NDArray[np.int64]
Learn = Callable[[Order], dict[str, float]]
"""Learns from the rows in this order; returns CPU and wall seconds."""


class Learner:
    """Someone who learns a dictionary, part by part.

    Args:
        learn: see `Learn`.
        atoms: returns what was learned so far `[m, d]`; None if nothing is.
        share: of the rows that it is given; what is slow gets fewer.
    """

    def __init__(
        self, learn: Learn, atoms: Callable[[], Tensor] | None = None, share: float = 1.0
    ) -> None:
        self.learn, self.atoms, self.share = learn, atoms, share
        self.count, self.cpu, self.wall = 0, 0.0, 0.0

    def take(self, order: Order, batch: int) -> None:
        """Learn from a part, in whole batches, at least one."""
        n = max(batch, round(len(order) * self.share) // batch * batch)
        spent = self.learn(order[:n])
        self.count += n
        self.cpu += spent["cpu"]
        self.wall += spent["wall"]


def our_run(x: Tensor, n: int, arguments: argparse.Namespace, *more: str) -> ours.Run:
    """Return a run of ours."""
    composition = [*COMPOSITION, f"dictionary.n_atoms={arguments.n_atoms}"]
    composition += [f"prox.lambda_={arguments.price}", f"inference.tolerance={TOLERANCE}"]
    return ours.Run([*composition, *more], x, arguments.batch, n)


def without_peers(
    x: Tensor, n: int, arguments: argparse.Namespace
) -> tuple[dict[str, Learner], Tensor]:
    """Return who needs no environment of its own, and the atoms that all begin with."""
    held, priced = (our_run(x, n, arguments, *more) for more in ((f"++prox.target_l0={L0}",), ()))
    start = priced.atoms().clone()
    learners = {
        OURS: Learner(held.train, held.atoms),
        AT_PRICE: Learner(priced.train, priced.atoms),
        SEED: seed_learner(x, start, arguments),
    }
    if x.device.type == "cpu" and importlib.util.find_spec("numba") is not None:
        from benchmarks.gram_descent import Prototype

        run = Prototype(x, start, arguments.price, L0, TOLERANCE, arguments.batch, n)
        run.train(np.arange(arguments.batch))  # compile, then begin anew
        run = Prototype(x, start, arguments.price, L0, TOLERANCE, arguments.batch, n)
        learners[PROTOTYPE] = Learner(run.train, lambda: run.atoms)
    return learners, start


def peer_learner(
    worker: peers.Worker, start: Path, file: Path, share: float, arguments: argparse.Namespace
) -> Learner:
    """Return a peer."""
    learned = start.with_name(f"exact_{worker.name}.npy")
    settings = {
        "vectors": str(file),
        "lambda": arguments.price,
        "batch": arguments.batch,
        "threads": arguments.threads,
        "out": str(learned),
    }
    worker.call("begin", atoms=str(start))

    def learn(order: Order) -> dict[str, float]:
        np.save(start.with_name("exact_order.npy"), order)
        return worker.call("learn", order=str(start.with_name("exact_order.npy")), **settings)

    return Learner(learn, lambda: torch.from_numpy(np.load(learned)), share)


def seed_learner(x: Tensor, atoms: Tensor, arguments: argparse.Namespace) -> Learner:
    """Return the seed, which only codes."""
    inference, prox = FistaSeed(), Soft(arguments.price)

    def learn(order: Order) -> dict[str, float]:
        rows = x[torch.from_numpy(order).to(x.device)]
        clock = Clock(x.device.type)
        inference(rows, atoms, prox)
        return clock.read()

    return Learner(learn, None, share=0.0)


def held_out(x: Tensor, atoms: Tensor, price: float) -> dict[str, float]:
    """Return objective, FVU and L0 of rows `[n, d]` by certified codes."""
    atoms = atoms.to(x)
    codes = WorkingSet(tolerance=1e-4)(x, atoms, Soft(price)).codes
    decoded = reconstruct(codes, atoms)
    cost = price * codes.values.sum(1)
    objective = 0.5 * (x - decoded).square().sum(1) + cost
    return {
        "objective": float(objective.mean()),
        "fvu": vectors.fvu(x, decoded),
        "l0": float(codes.l0().float().mean()),
    }


def measure(arguments: argparse.Namespace) -> dict[str, Cell]:
    """Let all learn in turns, and print the table; return the figures."""
    rows = vectors.rows(arguments)
    x, held = (part.to(arguments.device) for part in rows.load(None, 4096))
    n = 4 * arguments.batch if arguments.quick else arguments.budget
    order, missing = training_order(len(x), n, 0), dict[str, str]()
    learners, start = without_peers(x, n, arguments)
    file = arguments.data / "benchmarks" / "exchange" / "exact_start.npy"
    file.parent.mkdir(parents=True, exist_ok=True)
    np.save(file, start.cpu().numpy())
    with ExitStack() as stack:
        for name, share in () if arguments.no_peers else (("spams-bin", 1.0), ("scikit-learn", 0)):
            try:
                worker = stack.enter_context(peers.Worker(name, arguments.data, arguments.threads))
                learner = peer_learner(worker, file, rows.train, share, arguments)
                learners[worker.label] = learner
            except (peers.MissingPeerError, RuntimeError) as reason:
                missing[name] = str(reason)
        for turn, part in enumerate(np.array_split(order, TURNS)):
            for learner in learners.values():
                if learner.share > 0 or turn == 0:
                    learner.take(part, arguments.batch)
    found = {
        name: held_out(held, learner.atoms(), arguments.price)
        for name, learner in learners.items()
        if learner.atoms
    }
    return table(arguments, rows.about, learners, found, missing)


def table(
    arguments: argparse.Namespace,
    about: str,
    learners: dict[str, Learner],
    found: dict[str, dict[str, float]],
    missing: dict[str, str],
) -> dict[str, Cell]:
    """Print the table; return the figures."""
    size = f"n_atoms={arguments.n_atoms}, lambda {arguments.price}, batch {arguments.batch}"
    print(f"{about}\n{machine(arguments.device, arguments.threads)}\n")
    columns = ["learner", "vectors", "vectors / CPU s", "vectors / s", "ours is faster"]
    columns += ["held-out objective", "FVU", "L0"]
    printed = Table(f"Exact dictionary learning, {size}, gap {TOLERANCE}", columns)
    speeds = {name: learner.count / learner.cpu for name, learner in learners.items()}
    figures: dict[str, Cell] = {}
    for name, learner in learners.items():
        speed, short = speeds[name], name.split()[0]
        times = speeds[OURS if name in (OURS, PROTOTYPE) else AT_PRICE] / speed
        shown = ratio(speed, BAR, at_most=False) if name == OURS else round(speed)
        beside = ratio(times, TIMES, at_most=False) if name == PROTOTYPE else times
        held = [found[name][key] if name in found else None for key in ("objective", "fvu", "l0")]
        printed.row(name, learner.count, shown, round(learner.count / learner.wall), beside, *held)
        figures |= {f"exact/{short}/vectors_per_cpu_second": speed}
        figures |= {f"exact/{short}/ours_faster": times}
        figures |= {f"exact/{short}/{key}": value for key, value in found.get(name, {}).items()}
    for name, reason in missing.items():
        printed.row(name, None, None, None, reason, None, None, None)
    printed.print()
    return figures


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    vectors.add_arguments(parser, n_vectors=60_000)
    parser.add_argument("--n-atoms", type=int, default=1536)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--price", type=float, default=0.054, help="lambda; .054 gives L0 about 30")
    parser.add_argument("--budget", type=int, default=122_880, help="vectors to learn from")
    arguments: Any = parser.parse_args(argv)
    vectors.configure(arguments)
    if arguments.quick:
        arguments.n_atoms = min(arguments.n_atoms, 256)
    write_json(arguments.json, measure(arguments))


if __name__ == "__main__":
    main()
