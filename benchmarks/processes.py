"""Data parallel training on a CPU: two processes against one, for the same global batch.

    python benchmarks/processes.py [--vectors 150000] [--repeats 3] [--override KEY=VALUE ...] [--json FILE]

Whole runs of ``train.py`` with the default config, in turn so that all see the same load; medians of
``train/vectors_per_second``. The one process has one thread, or as many as there are cores; two
processes share them. What they learn is equal but for rounding, so that the held-out FVU of all
rows should be, too.
"""  # noqa: E501

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.default_run import measure
from benchmarks.table import Cell, Table, machine, write_json

BATCH = 1024


class Way(NamedTuple):
    """One way to use the cores."""

    processes: int
    threads: int

    @property
    def name(self) -> str:
        """How the table calls it."""
        return f"{self.processes} x {self.threads}"

    @property
    def overrides(self) -> list[str]:
        """The config."""
        trainer = "cpu" if self.processes == 1 else "ddp_cpu"
        devices = [] if self.processes == 1 else [f"trainer.devices={self.processes}"]
        own = BATCH // self.processes
        return [f"trainer={trainer}", *devices, f"hidden_states.batch_size={own}"]


def ways(cores: int) -> list[Way]:
    """Return what is compared; the second is what two processes are held against."""
    return [Way(1, 1), Way(1, cores), Way(2, max(1, cores // 2))]


def run(way: Way, vectors: int, place: Path, more: Sequence[str]) -> dict[str, float]:
    """Train once and return the figures of ``metrics.json``."""
    os.environ["OMP_NUM_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = str(way.threads)
    return measure([*way.overrides, *more], vectors, place)


def main(given: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vectors", type=int, default=150_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--override", nargs="*", default=[], help="for every run")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(given)
    cores = os.cpu_count() or 1
    compared = ways(cores)
    found: dict[Way, list[dict[str, float]]] = {way: [] for way in compared}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.repeats):
            for way in compared:
                figures = run(way, arguments.vectors, Path(folder), arguments.override)
                found[way].append(figures)
    speeds = {
        way: statistics.median(one["train/vectors_per_second"] for one in each)
        for way, each in found.items()
    }
    columns = ["processes x threads", "vectors/s", "of 1 process, all cores", "held-out FVU"]
    table = Table(f"Processes ({cores} cores, global batch {BATCH})", columns)
    flat: dict[str, Cell] = {}
    for way, each in found.items():
        share = speeds[way] / speeds[compared[1]]
        table.row(way.name, speeds[way], share, each[0]["val/fvu"])
        flat |= {f"{way.name}/vectors_per_second": speeds[way], f"{way.name}/of_one": share}
        flat[f"{way.name}/val/fvu"] = each[0]["val/fvu"]
    print(machine("cpu", cores))
    table.print()
    write_json(arguments.json, flat)


if __name__ == "__main__":
    main()
