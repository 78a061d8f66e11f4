"""The solvers and pursuits that `solvers.py` times: ours, and those of the peers' workers."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.measure import Clock
from dictlearn.codes import Codes
from dictlearn.inference import (
    Fista,
    FistaSeed,
    gradient_pursuit,
    infer,
    matching_pursuit,
    omp,
    solve,
)
from dictlearn.inference.engine import pick
from dictlearn.prox import Soft

EXACT = (
    "inference=working_set",
    "prox=soft",
    "prox.lambda_=0.06",
    "++prox.target_l0=32",
    "update=hessian_diagonal",
)
USED_FOR = {
    "lasso": ("spams-bin", "scikit-learn"),
    "pursuit": ("dictionary-learning", "overcomplete"),
}
FIRST_ORDER_STEPS = 500


class Problem(NamedTuple):
    """What is solved.

    Attributes:
        x: `[n, d]`.
        atoms: `[m, d]`, unit rows.
        price: lambda.
        k: codes per row of a pursuit.
    """

    x: Tensor
    atoms: Tensor
    price: float
    k: int


class Taken(NamedTuple):
    """One run of a method: codes, CPU and wall seconds."""

    codes: Tensor
    cpu: float
    wall: float


Method = Callable[[], Taken]


def workers(
    arguments: argparse.Namespace, stack: ExitStack
) -> tuple[dict[str, peers.Worker], dict[str, str]]:
    """Return the peers at work, and why others are not."""
    there, missing = {}, {}
    wanted = () if arguments.no_peers else [*USED_FOR["lasso"], *USED_FOR["pursuit"]]
    for name in wanted:
        try:
            worker = peers.Worker(name, arguments.data, arguments.threads)
            there[name] = stack.enter_context(worker)
        except peers.MissingPeerError as reason:
            missing[name] = str(reason)
    return there, missing


def labels(there: dict[str, peers.Worker]) -> dict[str, str]:
    """Return the names in the tables of the peers' methods that bars refer to."""
    names = {
        "spams float32": ("spams-bin", "lasso(pos=True) float32"),
        "spams float64": ("spams-bin", "lasso(pos=True) float64"),
        "dictionary-learning grad_pursuit": ("dictionary-learning", "grad_pursuit"),
        "overcomplete OMPSAE": ("overcomplete", "OMPSAE.encode"),
    }
    return {
        name: f"{there[peer].label} {method}"
        for name, (peer, method) in names.items()
        if peer in there
    }


def _ours(problem: Problem, solve: Callable[[Tensor, Tensor], Codes]) -> Method:
    """Return a timed run of a method of ours; it runs once on a few rows first, to be compiled."""
    solve(problem.x[:8], problem.atoms)

    def run() -> Taken:
        clock = Clock(problem.x.device.type)
        codes = solve(problem.x, problem.atoms)
        return Taken(codes.dense(), **clock.read())

    return run


def lasso(
    problem: Problem, there: dict[str, peers.Worker], arguments: argparse.Namespace
) -> dict[str, Method]:
    """Return the exact solvers, all asked for a worst relative gap of 1e-4."""
    prox, tasks = Soft(problem.price), dict[str, Any]()
    seed = FistaSeed()

    def first_order(solver: Any) -> Callable[[Tensor, Tensor], Codes]:
        return lambda x, atoms: (
            infer(x, atoms, prox, solver, tolerance=1e-4, max_steps=FIRST_ORDER_STEPS).codes
        )

    tasks["seed FISTA 500"] = lambda x, atoms: seed(x, atoms, prox).codes
    tasks["fista, at most 500 steps"] = first_order(Fista())
    greedy = _greedy_fista()
    if greedy is not None:
        tasks["greedy_fista, at most 500 steps"] = first_order(greedy)
    for name, engine, tolerance in (
        ("working_set torch", "torch", 1e-4),
        ("working_set compiled", "compiled", 1e-4),
        ("working_set torch float64", "torch", 1e-8),
        ("working_set compiled float64", "compiled", 1e-8),
    ):
        if engine == "torch" or _compiles(problem.x):
            tasks[name] = _working_set(prox, engine, tolerance)
    timed = {name: _ours(problem, solve) for name, solve in tasks.items()}
    return timed | _peer_lasso(problem, there, arguments)


def _working_set(prox: Soft, engine: str, tolerance: float) -> Callable[[Tensor, Tensor], Codes]:
    kind = torch.float64 if tolerance < 1e-5 else torch.float32

    def run(x: Tensor, atoms: Tensor) -> Codes:
        found = solve(x.to(kind), atoms.to(kind), prox, tolerance=tolerance, engine=engine)
        return found.codes

    return run


def _greedy_fista() -> Any:
    from dictlearn.inference import solvers

    kind = getattr(solvers, "GreedyFista", None)
    return None if kind is None else kind()


def _compiles(x: Tensor) -> bool:
    return pick("auto", x)


def pursuits(
    problem: Problem, there: dict[str, peers.Worker], arguments: argparse.Namespace
) -> dict[str, Method]:
    """Return the pursuits."""
    tasks: dict[str, Method] = {}
    engines = ["torch", *(["compiled"] if _compiles(problem.x) else [])]
    for name, method in (
        ("omp", omp),
        ("gradient_pursuit", gradient_pursuit),
        ("matching_pursuit", matching_pursuit),
    ):
        for engine in engines:
            tasks[f"{name} {engine}"] = _ours(problem, _pursuit(method, problem.k, engine))
    files = _files(problem, arguments)
    asked = {"k": problem.k, "device": arguments.device} | files
    if "dictionary-learning" in there:
        worker = there["dictionary-learning"]
        tasks[f"{worker.label} grad_pursuit"] = _peer(worker, "grad_pursuit", asked)
    if "overcomplete" in there:
        worker = there["overcomplete"]
        for method_name, label in (("omp", "OMPSAE.encode"), ("mp", "MpSAE.encode")):
            settings = asked | {"method": method_name}
            tasks[f"{worker.label} {label}"] = _peer(worker, "pursuit", settings)
    return tasks


def _pursuit(method: Any, k: int, engine: str) -> Callable[[Tensor, Tensor], Codes]:
    def run(x: Tensor, atoms: Tensor) -> Codes:
        found: Codes = method(x, atoms, k, engine=engine)
        return found

    return run


def _peer_lasso(
    problem: Problem, there: dict[str, peers.Worker], arguments: argparse.Namespace
) -> dict[str, Method]:
    asked = {"lambda": problem.price, "threads": arguments.threads} | _files(problem, arguments)
    tasks: dict[str, Method] = {}
    if "spams-bin" in there:
        worker = there["spams-bin"]
        for kind in ("float32", "float64"):
            name = f"{worker.label} lasso(pos=True) {kind}"
            tasks[name] = _peer(worker, "lasso", asked | {"dtype": kind})
    if "scikit-learn" in there:
        worker, some = there["scikit-learn"], arguments.sklearn_rows
        scale = len(problem.x) / some
        for method in ("lasso_cd", "lasso_lars"):
            name = f"{worker.label} sparse_encode {method} ({some} rows x {scale:.0f})"
            settings = asked | {"method": method, "rows": some}
            tasks[name] = _peer(worker, "lasso", settings, scale)
    return tasks


def _peer(worker: peers.Worker, task: str, settings: dict[str, Any], scale: float = 1.0) -> Method:
    def run() -> Taken:
        found = worker.call(task, **settings)
        codes = torch.from_numpy(np.load(settings["out"]))
        return Taken(codes, found["cpu"] * scale, found["wall"] * scale)

    return run


def _files(problem: Problem, arguments: argparse.Namespace) -> dict[str, str]:
    """Write rows and atoms for the workers; return where they are, and where codes go."""
    place = arguments.data / "benchmarks" / "exchange"
    place.mkdir(parents=True, exist_ok=True)
    names: dict[str, Path] = {name: place / f"{name}.npy" for name in ("vectors", "atoms", "out")}
    np.save(names["vectors"], problem.x.cpu().numpy())
    np.save(names["atoms"], problem.atoms.cpu().numpy())
    return {name: str(path) for name, path in names.items()}
