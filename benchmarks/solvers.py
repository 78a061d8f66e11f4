"""Exact codes and pursuits: time to a certified gap, and error at k codes, beside the peers.

    python benchmarks/solvers.py [--vectors FILE] [--dictionary FILE] [--n-atoms M ...] [--quick]

Rows are held-out vectors; the dictionary is learned here with exact codes (and kept), or given.
lambda is set for a mean L0 of 31. Every codes' relative duality gap is measured by one function of
this script, in float64, whoever made them. Methods are timed in turn; medians of CPU and wall
seconds. scikit-learn codes a few rows, scaled up.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import Tensor

from benchmarks import methods, ours, vectors
from benchmarks.measure import training_order
from benchmarks.methods import Method, Problem, Taken
from benchmarks.table import Cell, Table, machine, ratio, write_json
from dictlearn.inference import price_for_l0

L0 = 31
LASSO_BARS = (
    # of, over, bar, at_most, at n_atoms
    ("seed FISTA 500", "working_set torch", 20.0, False),
    ("seed FISTA 500", "working_set compiled", 30.0, False),
    ("spams float32", "working_set torch", 1.0, False),
    ("spams float32", "working_set compiled", 1.3, False),
    ("working_set compiled float64", "spams float64", 1.5, True),
)
PURSUIT_BARS = tuple(
    (peer, f"omp {engine}", bar, False)
    for peer in ("dictionary-learning grad_pursuit", "overcomplete OMPSAE")
    for engine, bar in (("compiled", 4.0), ("torch", 2.0))
)


def relative_gaps(problem: Problem, codes: Tensor) -> Tensor:
    """Return the relative duality gap of every row `[n]` of the non-negative lasso, in float64.

    Written for this script alone: primal less dual value at the residual, scaled into the
    dual-feasible set, over the primal value.
    """
    x, atoms = problem.x[: len(codes)].double(), problem.atoms.double()
    codes = codes.to(x)
    if bool((codes < 0).any()):
        raise ValueError("codes must not be negative")
    residual = x - codes @ atoms
    primal = 0.5 * residual.square().sum(1) + problem.price * codes.sum(1)
    highest = (residual @ atoms.T).amax(1)
    best = (x * residual).sum(1) / residual.square().sum(1).clamp_min(1e-300)
    limit = torch.where(highest > 0, problem.price / highest.clamp_min(1e-300), torch.inf)
    dual = residual * torch.minimum(best.clamp_min(0), limit)[:, None]
    value = 0.5 * x.square().sum(1) - 0.5 * (x - dual).square().sum(1)
    return (primal - value).clamp_min(0) / primal.clamp_min(1e-300)


def learned_dictionary(arguments: argparse.Namespace, rows: vectors.Rows, m: int) -> Tensor:
    """Return atoms `[m, d]` learned with exact codes on the training rows, kept in a file."""
    n = 3_000 if arguments.quick else arguments.dictionary_vectors
    kept = rows.train.parent / f"exact_{m}_{n}.npz"
    if not kept.exists():
        x = rows.load()[0].to(arguments.device)
        overrides = [*methods.EXACT, f"dictionary.n_atoms={m}", "inference.tolerance=0.001"]
        run = ours.Run(overrides, x, 512, n)
        print(f"learning {m} atoms with exact codes ...", file=sys.stderr, flush=True)
        run.train(training_order(len(x), n, 0))
        ours.save(kept, run)
    return torch.from_numpy(np.load(kept)["atoms"])


def in_turn(tasks: dict[str, Method], repeats: int, patience: float) -> dict[str, Taken]:
    """Return the codes and median seconds of every method; one slower than `patience` runs once."""
    found: dict[str, list[Taken]] = {}
    for _ in range(repeats):
        for name, method in tasks.items():
            before = found.get(name, [])
            if not before or before[0].cpu < patience:
                found.setdefault(name, []).append(method())
    return {
        name: Taken(
            taken[0].codes,
            statistics.median(entry.cpu for entry in taken),
            statistics.median(entry.wall for entry in taken),
        )
        for name, taken in found.items()
    }


def solver_table(problem: Problem, found: dict[str, Taken], missing: dict[str, str]) -> Table:
    """Return the table of exact solvers."""
    m, n = len(problem.atoms), len(problem.x)
    title = f"Exact codes, n_atoms={m}, {n} rows, lambda={problem.price:.4f}"
    table = Table(title, ["method", "CPU s", "wall s", "worst gap", "mean gap", "L0"])
    for name, taken in found.items():
        gaps = relative_gaps(problem, taken.codes)
        l0 = float((taken.codes > 1e-6).sum(1).double().mean())
        table.row(name, taken.cpu, taken.wall, float(gaps.max()), float(gaps.mean()), l0)
    for name, reason in missing.items():
        table.row(name, None, None, None, None, reason)
    return table


def pursuit_table(problem: Problem, found: dict[str, Taken], missing: dict[str, str]) -> Table:
    """Return the table of pursuits."""
    m, n = len(problem.atoms), len(problem.x)
    title = f"Pursuits, n_atoms={m}, {n} rows, k={problem.k}"
    table = Table(title, ["method", "CPU s", "wall s", "FVU", "L0"])
    for name, taken in found.items():
        l0 = float((taken.codes > 1e-6).sum(1).double().mean())
        table.row(name, taken.cpu, taken.wall, error_of(problem, taken), l0)
    for name, reason in missing.items():
        table.row(name, None, None, None, reason)
    return table


def error_of(problem: Problem, taken: Taken) -> float:
    """Return the FVU of codes, in float64."""
    decoded = taken.codes.double().to(problem.x.device) @ problem.atoms.double()
    return vectors.fvu(problem.x.double(), decoded)


def bars(
    found: dict[str, Taken],
    wanted: tuple[tuple[str, str, float, bool], ...],
    device: str,
    versions: dict[str, str],
) -> Table:
    """Return the table of ratios beside their bars."""
    table = Table("Ratios", ["slower", "over", "times"])
    for first, second, bar, at_most in wanted:
        one, other = (found.get(versions.get(name, name)) for name in (first, second))
        if one is None or other is None:
            table.row(first, second, None)
            continue
        clock = "wall" if device == "cuda" else "cpu"
        table.row(
            versions.get(first, first),
            versions.get(second, second),
            ratio(getattr(one, clock) / getattr(other, clock), bar, at_most=at_most),
        )
    return table


def figures_of(
    prefix: str, problem: Problem, found: dict[str, Taken], *, exact: bool
) -> dict[str, Cell]:
    """Return the figures of one table as flat keys."""
    figures: dict[str, Cell] = {}
    for name, taken in found.items():
        key = f"{prefix}/{name}"
        figures |= {f"{key}/cpu_s": taken.cpu, f"{key}/wall_s": taken.wall}
        if exact:
            figures[f"{key}/worst_gap"] = float(relative_gaps(problem, taken.codes).max())
        else:
            figures[f"{key}/fvu"] = error_of(problem, taken)
    return figures


def one_size(
    arguments: argparse.Namespace, rows: vectors.Rows, m: int, stack: ExitStack
) -> dict[str, Cell]:
    """Run all methods with one dictionary; print its tables, return the figures."""
    x = rows.load(1, arguments.rows)[1].to(arguments.device)
    given = arguments.dictionary
    atoms = vectors.read(given) if given else learned_dictionary(arguments, rows, m)
    atoms = torch.nn.functional.normalize(torch.as_tensor(atoms).float().to(x.device), dim=1)
    problem = Problem(x, atoms, price_for_l0(x[:512], atoms, L0), arguments.k)
    there, missing = methods.workers(arguments, stack)
    exact = methods.lasso(problem, there, arguments)
    greedy = methods.pursuits(problem, there, arguments)
    versions = methods.labels(there)
    figures: dict[str, Cell] = {f"m{len(atoms)}/lambda": problem.price}
    for kind, tasks, wanted in (
        ("lasso", exact, LASSO_BARS),
        ("pursuit", greedy, PURSUIT_BARS),
    ):
        found = in_turn(tasks, arguments.repeats, arguments.patience)
        table = solver_table if kind == "lasso" else pursuit_table
        absent = {name: why for name, why in missing.items() if name in methods.USED_FOR[kind]}
        table(problem, found, absent).print()
        bars(found, wanted, arguments.device, versions).print()
        prefix = f"{kind}/m{len(atoms)}"
        figures |= figures_of(prefix, problem, found, exact=kind == "lasso")
    return figures


def main(argv: list[str] | None = None) -> None:
    """Print the tables of every size."""
    parser = argparse.ArgumentParser(description=__doc__)
    vectors.add_arguments(parser)
    parser.add_argument("--dictionary", type=Path, help="atoms [m, d], of any source")
    parser.add_argument("--dictionary-vectors", type=int, default=100_000, help="to learn it from")
    parser.add_argument("--n-atoms", type=int, nargs="*", default=[1536, 3072])
    parser.add_argument("--rows", type=int, default=1024, help="held-out rows to code")
    parser.add_argument("--k", type=int, default=32, help="codes a row of the pursuits")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--patience", type=float, default=4.0, help="CPU s; slower runs once")
    parser.add_argument("--sklearn-rows", type=int, default=64)
    arguments = parser.parse_args(argv)
    vectors.configure(arguments)
    if arguments.quick:
        arguments.n_atoms, arguments.rows, arguments.repeats = [512], 64, 1
        arguments.sklearn_rows = 4
    rows = vectors.rows(arguments)
    print(f"{rows.about}\n{machine(arguments.device, arguments.threads)}\n", flush=True)
    figures: dict[str, Cell] = {}
    with ExitStack() as stack:
        for m in [0] if arguments.dictionary else arguments.n_atoms:
            figures |= one_size(arguments, rows, m, stack)
    write_json(arguments.json, figures)


if __name__ == "__main__":
    main()
