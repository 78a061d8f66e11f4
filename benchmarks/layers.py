"""What a layer of an unrolled encoder costs at use: on all atoms, and on a few candidates.

    python benchmarks/layers.py [--vectors FILE] [--n-atoms 1536] [--device cuda] [--quick]

A layer is the mean difference between encoders of 2 and of 6 layers, so that the first one, which
looks at all atoms in either case and chooses the candidates, is not in it. All encode the same
rows in turns; each figure is the median over turns of ratios within a turn, because the speed of a
machine drifts. Beside it stands one TopK encode, product and selection. Encoders are not trained:
what a layer costs does not depend on what it learned.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from torch import Tensor

from benchmarks import ours, vectors
from benchmarks.measure import Clock
from benchmarks.table import Cell, Table, machine, ratio, write_json

FEW, MANY = 2, 6
DENSE = "all atoms"
BAR = 0.1
"""Of a layer on candidates, over one on all atoms."""


def encoders(x: Tensor, arguments: argparse.Namespace) -> dict[str, ours.Run]:
    """Return one encoder of one layer, and two for every kind of layer."""
    shared = [f"dictionary.n_atoms={arguments.n_atoms}", "prox=topk", f"prox.k={arguments.k}"]

    def built(*more: str) -> ours.Run:
        run = ours.Run([*shared, *more], x, len(x), len(x), revive=False)
        run.learner.eval()
        return run

    found = {"one": built("experiment=topk_sae")}
    kinds = {DENSE: "null"} | {f"{c} candidates": f"{c}" for c in arguments.candidates}
    for kind, wanted in kinds.items():
        for layers in (FEW, MANY):
            found[f"{kind}/{layers}"] = built(
                "inference=unrolled",
                f"inference.n_layers={layers}",
                f"inference.n_candidates={wanted}",
            )
    return found


def turn(runs: dict[str, ours.Run], x: Tensor) -> dict[str, float]:
    """Encode all rows with all; return microseconds a row of an encode and of every layer."""
    spent = {}
    for name, run in runs.items():
        clock = Clock(x.device.type)
        run.codes(x)
        spent[name] = clock.read()["wall" if x.device.type == "cuda" else "cpu"] / len(x) * 1e6
    layers = {name.split("/")[0] for name in runs if "/" in name}
    return {"one": spent["one"]} | {
        name: (spent[f"{name}/{MANY}"] - spent[f"{name}/{FEW}"]) / (MANY - FEW) for name in layers
    }


def measure(arguments: argparse.Namespace) -> dict[str, Cell]:
    """Print the table; return the figures."""
    rows = vectors.rows(arguments)
    x = rows.load(arguments.n_rows)[0].to(arguments.device)
    runs = encoders(x, arguments)
    turns = [turn(runs, x) for _ in range(arguments.turns + 1)][1:]  # the first compiles

    def median(name: str, over: str | None = None) -> float:
        return statistics.median(one[name] / (one[over] if over else 1.0) for one in turns)

    print(f"{rows.about}\n{machine(arguments.device, arguments.threads)}\n")
    table = Table(
        f"A layer at use, n_atoms={arguments.n_atoms}, k={arguments.k}, {len(x)} rows",
        ["layer on", "us a row", "over one TopK encode", "over a layer on all atoms"],
    )
    figures: dict[str, Cell] = {"layers/topk_encode/us": median("one")}
    table.row("(one TopK encode)", median("one"), 1.0, None)
    for name in (DENSE, *(f"{c} candidates" for c in arguments.candidates)):
        share = median(name, DENSE)
        shown = 1.0 if name == DENSE else ratio(share, BAR, at_most=True)
        table.row(name, median(name), median(name, "one"), shown)
        key = name.replace(" ", "_")
        figures |= {f"layers/{key}/us": median(name), f"layers/{key}/of_dense": share}
        figures[f"layers/{key}/of_encode"] = median(name, "one")
    table.print()
    return figures


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    vectors.add_arguments(parser, n_vectors=60_000)
    parser.add_argument("--n-atoms", type=int, default=1536)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--candidates", type=int, nargs="+", default=[40, 64, 128])
    parser.add_argument("--n-rows", type=int, default=4096)
    parser.add_argument("--turns", type=int, default=9)
    arguments: Any = parser.parse_args(argv)
    vectors.configure(arguments)
    if arguments.quick:
        arguments.n_atoms, arguments.turns = min(arguments.n_atoms, 256), 1
    write_json(arguments.json, measure(arguments))


if __name__ == "__main__":
    main()
