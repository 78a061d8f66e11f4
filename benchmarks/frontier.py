"""FVU against L0: our dictionaries and inference beside one-layer autoencoders, ours and the peers'.

    python benchmarks/frontier.py [--vectors FILE] [--layer all] [--only PART ...] [--n-atoms 1536 3072]

Every dictionary is learned from the same rows in the same order; one-layer autoencoders at the best
of four learning rates, ours at the defaults of their configs. Each training is kept under
`data/benchmarks/frontier/`, so that a stopped run goes on where it was and tables cost nothing.
Parts: presets (our one-layer autoencoders), peers, ours (dictionaries for exact codes), encoders
(unrolled), equal_cpu (the best preset given the CPU seconds of the best of ours).
"""  # noqa: E501

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import peers, trainings, vectors
from benchmarks.table import Cell, Table, machine, ratio, write_json
from benchmarks.trainings import Found, Training

K = 32
PARTS = ("presets", "peers", "ours", "encoders", "equal_cpu")
BARS = {1536: 0.65, 3072: 0.52}
MIXED, ENCODER, EQUAL_CPU, CHECKPOINT = 0.62, 0.80, 0.75, 0.80
AFFORDABLE = 2.5
"""An encoder counts as amortised up to so many times the time of a TopK encode."""


def planned(arguments: argparse.Namespace, m: int) -> Iterator[Training]:
    """Yield the trainings of the parts asked for, but `equal_cpu`."""
    for part in arguments.only:
        methods = trainings.METHODS.get(part, {})
        for side, method in methods:
            rates = methods[side, method]
            for rate in rates[:1] if arguments.quick else rates:
                yield Training(part, side, method, m, rate, arguments.n_vectors)


def equal_cpu(arguments: argparse.Namespace, found: list[Found], m: int) -> Iterator[Training]:
    """Yield the best preset of every kind with the CPU seconds of the best of ours."""
    ours = best(found, "ours", m, arguments.n_vectors)
    if "equal_cpu" not in arguments.only or ours is None:
        return
    for method in sorted({entry["method"] for entry in of(found, "presets", m)}):
        kind = [entry for entry in of(found, "presets", m) if entry["method"] == method]
        chosen = lowest([entry for entry in kind if entry["n_vectors"] == arguments.n_vectors])
        if chosen is None:
            continue
        more = max(1.0, ours["cpu"] / chosen["cpu"])
        # Longer runs want lower rates: the best one, and half of it.
        for rate in (chosen["rate"], chosen["rate"] / 2):
            n = int(more * arguments.n_vectors)
            yield Training("equal_cpu", "dictlearn", method, m, rate, n)


def of(found: list[Found], part: str, m: int) -> list[Found]:
    """Return what was found of a part at a number of atoms."""
    return [entry for entry in found if entry["part"] == part and entry["n_atoms"] == m]


def lowest(found: list[Found], key: str = f"fvu@{K}") -> Found | None:
    """Return the entry with the lowest error."""
    known = [entry for entry in found if entry.get(key) is not None]
    return min(known, key=lambda entry: float(entry[key]), default=None)


def best(found: list[Found], part: str, m: int, n_vectors: int) -> Found | None:
    """Return the best of a part with so many vectors; of ours by its best inference."""
    key = f"best@{K}" if part == "ours" else f"fvu@{K}"
    return lowest([e for e in of(found, part, m) if e["n_vectors"] == n_vectors], key)


def all_rates(found: list[Found], m: int, levels: tuple[int, ...]) -> Table:
    """Return the table of all trainings."""
    columns = [
        "part",
        "who",
        "method",
        "rate",
        "vectors",
        "CPU s",
        "encode us",
        "TopK encodes",
        "silent",
        "L0",
    ]
    pursued = [*(f"omp@{k}" for k in levels), f"exchange@{K}", f"shared@{K}", f"shared_l0@{K}"]
    names = [f"own @{k}" for k in levels] + [name.replace("@", " @") for name in pursued]
    table = Table(f"FVU at L0, n_atoms={m}", [*columns, *names])
    for entry in sorted(found, key=lambda e: (e["part"], e["side"], e["method"], e["rate"] or 0)):
        if entry["n_atoms"] != m:
            continue
        cells: list[Cell] = [entry["part"], entry["label"], entry["method"], entry["rate"]]
        cells += [
            entry["n_vectors"],
            entry["cpu"],
            entry.get("encode_us"),
            entry.get("topk_encodes"),
            entry.get(f"silent@{K}"),
            entry.get(f"l0@{K}"),
        ]
        cells += [entry.get(f"fvu@{k}") for k in levels]
        table.row(*cells, *(entry.get(name) for name in pursued))
    return table


def verdicts(
    found: list[Found], m: int, arguments: argparse.Namespace
) -> tuple[Table, dict[str, Cell]]:
    """Return the table of ratios beside their bars, and its figures."""
    n = arguments.n_vectors
    table = Table(f"Ratios of FVU at L0 = {K}, n_atoms={m}", ["ours", "over", "ratio"])
    figures: dict[str, Cell] = {}
    ours, encoder = best(found, "ours", m, n), affordable(found, m)
    preset, topk = best(found, "presets", m, n), topk_of(found, m, n)

    def put(name: str, one: Found | None, key: str, other: Found | None, bar: float | None) -> None:
        if one is None or other is None or bar is None or key not in one:
            return
        value = float(one[key]) / float(other[f"fvu@{K}"])
        figures[f"m{m}/{name}"] = value
        mine = "its atoms, our codes" if one is other else titled(one)
        table.row(mine, titled(other), ratio(value, bar, at_most=True))

    by_best = f"best@{K}"
    put("best_over_preset", ours, by_best, preset, None if arguments.mixed else BARS.get(m))
    put("best_over_topk_mixed", ours, by_best, topk, MIXED if arguments.mixed else None)
    put("best_over_equal_cpu", ours, by_best, lowest(of(found, "equal_cpu", m)), EQUAL_CPU)
    put("encoder_over_preset", encoder, f"fvu@{K}", preset, ENCODER)
    for side, method in trainings.METHODS["peers"]:
        kind = [e for e in of(found, "peers", m) if (e["side"], e["method"]) == (side, method)]
        peer = lowest(kind)
        name = f"{side}_{method}"
        put(f"checkpoint_{name}", peer, f"shared@{K}", peer, CHECKPOINT)
        put(f"best_over_{name}", ours, by_best, peer, BARS.get(m))
    return table, figures


def affordable(found: list[Found], m: int) -> Found | None:
    """Return the best encoder whose inference costs at most 2.5 times one TopK encode."""
    encoders = [entry for entry in of(found, "encoders", m) if "topk_encodes" in entry]
    return lowest([entry for entry in encoders if entry["topk_encodes"] <= AFFORDABLE])


def topk_of(found: list[Found], m: int, n_vectors: int) -> Found | None:
    """Return our TopK preset at its best rate."""
    presets = [entry for entry in of(found, "presets", m) if entry["n_vectors"] == n_vectors]
    return lowest([entry for entry in presets if entry["method"] == "topk"])


def titled(entry: Found) -> str:
    """Return what a row is, in short."""
    rate = "" if entry["rate"] is None else f" lr {entry['rate']:.2g}"
    return f"{entry['label']} {entry['method']}{rate} ({entry['n_vectors']:,})"


def main(argv: list[str] | None = None) -> None:
    """Train what is missing, and print the tables of all that is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    vectors.add_arguments(parser)
    parser.add_argument("--n-atoms", type=int, nargs="*", default=[1536, 3072])
    parser.add_argument("--only", nargs="*", default=list(PARTS), choices=PARTS)
    parser.add_argument("--method", nargs="*", help="of the parts: only these methods")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--levels", type=int, nargs="*", default=[8, 16, 32, 64, 128])
    parser.add_argument("--held-rows", type=int, default=8192, help="evaluated")
    parser.add_argument("--mixed", action="store_true", help="the vectors are of all layers")
    parser.add_argument("--redo", action="store_true", help="train again what is there")
    parser.add_argument("--table", action="store_true", help="train nothing, print what is there")
    arguments = parser.parse_args(argv)
    vectors.configure(arguments)
    arguments.mixed |= arguments.layer == "all"
    if arguments.quick:
        arguments.n_atoms, arguments.levels, arguments.held_rows = [256], [K], 512
    if arguments.no_peers:
        arguments.only = [part for part in arguments.only if part != "peers"]
    rows = vectors.rows(arguments)
    print(f"{rows.about}\n{machine(arguments.device, arguments.threads)}\n", flush=True)
    shop, figures = trainings.Shop(arguments, rows, K), dict[str, Cell]()
    for m in arguments.n_atoms:
        figures |= one_size(arguments, shop, m)
    write_json(arguments.json, figures)


def one_size(arguments: argparse.Namespace, shop: trainings.Shop, m: int) -> dict[str, Cell]:
    """Do all trainings with one number of atoms; print its tables, return the figures."""
    missing: dict[str, str] = {}
    if not arguments.table:
        train(arguments, shop, list(planned(arguments, m)), missing)
        train(arguments, shop, list(equal_cpu(arguments, shop.found(), m)), missing)
    found = shop.found()
    all_rates(found, m, tuple(arguments.levels)).print()
    for name, reason in missing.items():
        print(f"{name}: {reason}")
    table, figures = verdicts(found, m, arguments)
    table.print()
    for entry in (entry for entry in found if entry["n_atoms"] == m):
        key = f"m{m}/{entry['part']}/{entry['side']}/{entry['method']}/{entry['rate']}"
        numbers = {name: value for name, value in entry.items() if "@" in name or name == "cpu"}
        figures |= {f"{key}/{name}": value for name, value in numbers.items()}
    return figures


def train(
    arguments: argparse.Namespace,
    shop: trainings.Shop,
    wanted: list[Training],
    missing: dict[str, str],
) -> None:
    """Do the trainings that are not kept yet."""
    for number, training in enumerate(wanted):
        if arguments.method and training.method not in arguments.method:
            continue
        if training.side in missing or f"{training.side} {training.method}" in missing:
            continue
        said = f"{number + 1}/{len(wanted)} {training.name}"
        try:
            done: dict[str, Any] = shop.do(training)
        except (peers.MissingPeerError, RuntimeError) as reason:
            absent = isinstance(reason, peers.MissingPeerError)
            missing[training.side if absent else f"{training.side} {training.method}"] = str(reason)
            print(f"{said}: {reason}", file=sys.stderr, flush=True)
            continue
        wanted_keys = (f"fvu@{K}", f"omp@{K}", f"exchange@{K}", f"shared@{K}", "cpu")
        short = {key: round(done[key], 4) for key in wanted_keys if key in done}
        print(f"{said}: {json.dumps(short)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
