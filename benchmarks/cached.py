"""Training from stored hidden states beside training from the transformer: same config, same text.

    python benchmarks/cached.py [--n-vectors 409600] [--repeats 1] [--json FILE] [--quick]

Every run is ``train.py`` in a process of its own, live and cached in turn; vectors/s are those of its
``metrics.json`` (validation left out, extraction in). The cache is made first, by ``dictlearn cache``,
and read alone: its digests, and random batches with the pages of the files in memory and dropped.
"""  # noqa: E501

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import default_run
from benchmarks.measure import Clock
from benchmarks.table import Cell, Table, machine, write_json
from dictlearn.hidden_states import CachedDataModule, CachedOptions
from dictlearn.hidden_states.cache import manifest

TRAININGS = {
    "TopK autoencoder": ["inference=autoencoder", "prox=topk"],
    "BatchTopK, 3 layers": ["inference=unrolled"],
    "default": [],
}
QUICK = ["text.max_documents=40", "hidden_states.layers=[0,3]", "hidden_states.block_length=32"]
BATCH = 1024


class Making(NamedTuple):
    """How a cache was made."""

    seconds: float
    vectors: int
    bytes: int


def make(folder: Path, arguments: argparse.Namespace) -> Making:
    """Make the cache in a process of its own."""
    code = "from dictlearn.cli import main; main()"
    given = [f"path={folder}", f"max_vectors={arguments.n_vectors}", f"data_dir={arguments.data}"]
    given.append("max_validation_vectors=65536")
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", code, "cache", *given, *(QUICK if arguments.quick else [])],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)},
    )
    made = manifest.read(folder)
    vectors = len(made.layers) * sum(shard.tokens for shard in (*made.train, *made.validation))
    size = sum(shard.bytes for shard in (*made.train, *made.validation))
    return Making(time.perf_counter() - began, vectors, size)


def drop_pages(folder: Path) -> None:
    """Ask the system to forget the shards, so that they are read from the disk again."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def reading(folder: Path, cold: bool, n_batches: int) -> tuple[float, dict[str, float]]:
    """Return vectors and seconds of random batches."""
    options = CachedOptions(str(folder), batch_size=BATCH, verify=False)
    module = CachedDataModule(options, max_vectors=BATCH * n_batches)
    module.setup()
    if cold:
        drop_pages(folder)
    clock = Clock()
    n = sum(len(batch.layer) for batch in module.train_dataloader())
    return float(n), clock.read()


def read_table(folder: Path, making: Making, arguments: argparse.Namespace) -> dict[str, Cell]:
    """Measure making and reading; print the table."""
    columns = ["what", "vectors / s", "MiB / s", "vectors / CPU s"]
    table = Table(f"Cache of {making.vectors:,} vectors, {making.bytes / 2**20:,.0f} MiB", columns)
    mib = making.bytes / 2**20
    table.row("made", making.vectors / making.seconds, mib / making.seconds, None)
    clock = Clock()
    for shard in manifest.read(folder).train:
        manifest.check(folder, shard)
    spent = clock.read()
    share = sum(shard.bytes for shard in manifest.read(folder).train) / 2**20
    figures: dict[str, Cell] = {"cache/digest_mib_per_s": share / spent["wall"]}
    table.row("digests checked", None, share / spent["wall"], None)
    each = making.bytes / making.vectors / 2**20
    for name, cold in (("random batches, from memory", False), ("random batches, dropped", True)):
        n, spent = reading(folder, cold, 5 if arguments.quick else 100)
        rate = n / spent["wall"]
        table.row(name, rate, rate * each, n / spent["cpu"])
        figures[f"cache/read_{'cold' if cold else 'warm'}_vectors_per_s"] = rate
    table.print()
    return figures


def training_table(folder: Path, arguments: argparse.Namespace) -> dict[str, Cell]:
    """Train live and cached, in turn; print the table."""
    cached = ["hidden_states=cached", f"hidden_states.path={folder}"]
    columns = ["training", "live vectors / s", "cached vectors / s", "faster", "live FVU", "cached"]
    table = Table(f"Training on {arguments.n_vectors:,} vectors, live and cached", columns)
    figures: dict[str, Cell] = {}
    for name in arguments.only or TRAININGS:
        found: dict[str, list[dict[str, float]]] = {"live": [], "cached": []}
        for _ in range(arguments.repeats):
            for kind, source in (("live", QUICK if arguments.quick else []), ("cached", cached)):
                overrides = ["trainer=cpu", f"data_dir={arguments.data}", *source, *TRAININGS[name]]
                overrides += ["dictionary.n_atoms=64", "prox.k=8"] if arguments.quick else []
                with tempfile.TemporaryDirectory() as place:
                    n = arguments.n_vectors
                    found[kind].append(default_run.measure(overrides, n, Path(place)))
        median = {
            (kind, key): statistics.median(run[key] for run in runs)
            for kind, runs in found.items()
            for key in ("train/vectors_per_second", "val/fvu")
        }
        live, stored = (median[kind, "train/vectors_per_second"] for kind in ("live", "cached"))
        fvu = [median[kind, "val/fvu"] for kind in ("live", "cached")]
        table.row(name, live, stored, f"{stored / live:.2f}", *fvu)
        figures |= {f"{name}/live": live, f"{name}/cached": stored, f"{name}/faster": stored / live}
    table.print()
    return figures


def main(argv: list[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n-vectors", type=int, default=409_600)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=list(TRAININGS))
    parser.add_argument("--data", type=Path, default=Path(__file__).parent.parent / "data")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.n_vectors = 4096
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "cache"
        making = make(folder, arguments)
        print(f"{machine('cpu', int(os.environ.get('OMP_NUM_THREADS', '1')))}\n")
        figures = read_table(folder, making, arguments)
        figures |= {"cache/made_vectors_per_s": making.vectors / making.seconds}
        figures |= training_table(folder, arguments)
    write_json(arguments.json, figures)


if __name__ == "__main__":
    main()
