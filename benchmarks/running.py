"""What it costs to run: exact checkpoints, and extraction with and without a background thread.

    python benchmarks/running.py [--vectors 400000] [--n-atoms 3072 24576] [--device cuda] [--quick]

Whole runs of ``train.py`` on the embedded model and text, each in a process of its own. The cost
of a checkpoint is that of writing it, its manifest and the artefact, flushed to the disk, over a
minute: what saving once a minute costs. Of the extraction the table tells how much of it training
waited for: without a background thread all; the overlap is the share that it did not wait for.
Every recipe runs twice each way, in turns.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.table import Cell, Table, machine, ratio, write_json

TRAIN = Path(__file__).resolve().parent.parent / "train.py"
SAVES = 12
SHARE = 0.02
"""Of a minute of training, at most."""
RECIPES = {
    "TopK autoencoder": ["experiment=topk_sae"],
    "the same, 2 processes": ["experiment=topk_sae", "trainer=ddp_cpu"],
    "default (two_phase)": [],
}


def run(place: Path, vectors: int, *overrides: str) -> Path:
    """Run ``train.py`` once; return its run directory."""
    out = place / f"run{len(list(place.glob('run*')))}"
    command = [
        *(sys.executable, str(TRAIN), f"max_vectors={vectors}", "logger=csv"),
        *("trainer.enable_progress_bar=false", "trainer.limit_val_batches=0", "~callbacks.gallery"),
        *("trainer.log_every_n_steps=10", f"data_dir={place / 'data'}", f"hydra.run.dir={out}"),
    ]
    subprocess.run([*command, *overrides], check=True, stdout=subprocess.DEVNULL)
    return out


def saving(place: Path, arguments: argparse.Namespace) -> dict[str, Cell]:
    """Print what a checkpoint costs, for dictionaries of several sizes."""
    columns = ["atoms", "checkpoint MB", "ms a save", "of a minute"]
    table, found = Table("Exact checkpoints, one a minute", columns), {}
    for n_atoms in arguments.n_atoms:
        steps = SAVES * 2
        out = run(
            place,
            steps * 1024,
            f"trainer={arguments.trainer}",
            "experiment=topk_sae",
            f"dictionary.n_atoms={n_atoms}",
            "callbacks.checkpoint.every_steps=2",
            "callbacks.checkpoint.monitor=null",
        )
        figures = json.loads((out / "metrics.json").read_text())
        seconds = figures["seconds/saving"] / SAVES
        size = (out / "checkpoints" / "last.ckpt").stat().st_size / 1e6
        table.row(n_atoms, size, 1000 * seconds, ratio(seconds / 60, SHARE, at_most=True))
        found[f"saving/{n_atoms}/share"] = seconds / 60
    table.print()
    return found


def overlap(place: Path, arguments: argparse.Namespace) -> dict[str, Cell]:
    """Print speed and waiting with the next blocks made in the background and without."""
    columns = ["recipe", "background", "vectors/s", "extraction", "waiting", "overlap", "faster"]
    table = Table(f"Extraction beside training, {arguments.vectors:,} vectors", columns)
    found: dict[str, Cell] = {}
    for recipe, overrides in RECIPES.items():
        if arguments.device == "cuda" and "trainer=ddp_cpu" in overrides:
            continue
        measured: dict[str, list[tuple[float, ...]]] = {"false": [], "true": []}
        for prefetch in arguments.turns:
            given = [f"trainer={arguments.trainer}", *overrides]
            out = run(place, arguments.vectors, *given, f"hidden_states.prefetch={prefetch}")
            measured[prefetch].append(speed_and_shares(out))
        mean = {
            prefetch: [sum(cells) / len(cells) for cells in zip(*runs, strict=True)]
            for prefetch, runs in measured.items()
        }
        for prefetch, (speed, extraction, waiting) in mean.items():
            share = max(0.0, 1 - waiting / extraction)
            faster = speed / mean["false"][0]
            table.row(recipe, prefetch, speed, extraction, waiting, share, faster)
            found[f"overlap/{recipe}/{prefetch}/vectors_per_second"] = speed
            found[f"overlap/{recipe}/{prefetch}/share"] = share
    table.print()
    return found


def speed_and_shares(out: Path) -> tuple[float, ...]:
    """Return vectors a second of a run, and the shares of extraction and waiting."""
    with (out / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("time/waiting")]
    shares = (
        sum(float(row[f"time/{name}"]) for row in rows) / len(rows)
        for name in ("extraction", "waiting")
    )
    figures = json.loads((out / "metrics.json").read_text())
    return (figures["train/vectors_per_second"], *shares)


def main(given: list[str] | None = None) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vectors", type=int, default=400_000)
    parser.add_argument("--n-atoms", type=int, nargs="+", default=[3072, 24576])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--quick", action="store_true", help="to see that it runs")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(given)
    arguments.turns = ("false", "true", "true", "false")
    arguments.trainer = "gpu" if arguments.device == "cuda" else "cpu"
    if arguments.quick:
        arguments.vectors, arguments.n_atoms = 20_480, [256]
        arguments.turns = ("false", "true")
    print(machine(arguments.device, threads=2), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        found = saving(Path(folder), arguments) | overlap(Path(folder), arguments)
    write_json(arguments.json, found)


if __name__ == "__main__":
    main()
