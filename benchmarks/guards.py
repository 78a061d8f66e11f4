"""What it costs to be safe: guards against numbers that are not finite, and an outage of W&B.

    python benchmarks/guards.py [--vectors 204800] [--repeats 3] [--json FILE] [--quick]

Training runs as ``train.py`` makes them, on the embedded model and text. The first table has the
time within the guards (of hidden states that are not finite or far too long, and of gradients)
over the time of training. The second has the time of a step after the server of W&B fell silent,
hung up or went away over that before it in the same run, beside that of a run in which nothing
happened; the server is one of our own on this machine.
"""

from __future__ import annotations

import argparse
import csv
import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.table import Cell, Table, machine, ratio, write_json
from tests.loggers.fake_wandb import FakeWandb

TRAIN = Path(__file__).resolve().parent.parent / "train.py"
SHARE, OUTAGE = 0.005, 1.05
"""Of the time of training for hidden states, and of that of a step before: at most."""
RECIPES: dict[str, list[str]] = {
    "TopK autoencoder": ["experiment=topk_sae"],
    "TopK autoencoder, batches of 4,096": ["experiment=topk_sae", "hidden_states.batch_size=4096"],
    "default (two_phase)": [],
}
OUTAGES: dict[str, Callable[[FakeWandb], None]] = {
    "nothing happens": lambda server: None,
    "falls silent": FakeWandb.silence,
    "hangs up": FakeWandb.hang_up,
    "goes away": FakeWandb.go_away,
}
EVERY = 4


def given(place: Path, out: Path, vectors: int) -> list[str]:
    """Return what all runs are given."""
    return [
        *(f"max_vectors={vectors}", f"data_dir={place / 'data'}", f"hydra.run.dir={out}"),
        *("trainer.enable_progress_bar=false", "trainer.limit_val_batches=0", "~callbacks.gallery"),
    ]


def timed(owner: type, name: str, spent: dict[str, float]) -> None:
    """Add up the seconds within a method."""
    method = getattr(owner, name)

    @functools.wraps(method)
    def within(*arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return method(*arguments, **options)
        finally:
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - began

    setattr(owner, name, within)


def guards(place: Path, vectors: int) -> dict[str, Cell]:
    """Print what the guards cost, in this process."""
    from dictlearn import cli
    from dictlearn.hidden_states.soundness import Soundness
    from dictlearn.update.guard import StepGuard

    spent: dict[str, float] = {}
    timed(Soundness, "sift", spent)
    timed(StepGuard, "allows", spent)
    columns = ["recipe", "ns a vector", "of hidden states, ns", "of the time"]
    columns += ["of gradients, ns", "of the time"]
    table, found = Table("Guards against what is not finite", columns), {}
    for number, recipe in enumerate(RECIPES):
        out = place / f"guards{number}"
        spent.clear()
        cli.train([*RECIPES[recipe], *given(place, out, vectors), "logger=csv"])
        speed = json.loads((out / "metrics.json").read_text())["train/vectors_per_second"]
        states, gradients = (spent[name] / vectors for name in ("sift", "allows"))
        shares = states * speed, gradients * speed
        shown = ratio(shares[0], SHARE, at_most=True)
        table.row(recipe, 1e9 / speed, 1e9 * states, shown, 1e9 * gradients, shares[1])
        for name, share in zip(("hidden_states", "gradients"), shares, strict=True):
            found[f"guards/{recipe}/{name}/share"] = share
    table.print()
    return found


def outages(place: Path, arguments: argparse.Namespace) -> dict[str, Cell]:
    """Print how much longer steps take after an outage, in processes of their own, in turns."""
    table = Table(
        f"W&B in mid-run, medians of {arguments.repeats} runs",
        ["its server", "ms a step", "after over before", "the same over nothing happens"],
    )
    measured: dict[str, list[tuple[float, float]]] = {outage: [] for outage in OUTAGES}
    for number, outage in itertools.product(range(arguments.repeats), OUTAGES):
        out = place / f"{outage}{number}"
        with FakeWandb() as server:
            measured[outage].append(halves(place, out, arguments.vectors, outage, server))
    ratios = {
        outage: statistics.median(after / before for before, after in pairs)
        for outage, pairs in measured.items()
    }
    found: dict[str, Cell] = {}
    for outage, pairs in measured.items():
        ms = statistics.median(before for before, _ in pairs)
        longer = ratios[outage] / ratios["nothing happens"]
        table.row(outage, ms, ratios[outage], ratio(longer, OUTAGE, at_most=True))
        found[f"outage/{outage}/step_time"] = longer
    table.print()
    return found


def halves(
    place: Path, out: Path, vectors: int, outage: str, server: FakeWandb
) -> tuple[float, float]:
    """Return the median times of a step, in ms, before and after what happens half-way."""
    account = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": 40 * "a", "WANDB_MODE": "online"}
    account["WANDB_ERROR_REPORTING"] = "false"
    command = [sys.executable, str(TRAIN), "experiment=topk_sae", "logger=wandb"]
    command += [*given(place, out, vectors), f"trainer.log_every_n_steps={EVERY}"]
    command += ["logger.wandb.upload_seconds=5"]
    half = vectors // 1024 // EVERY // 2
    with subprocess.Popen(command, env=os.environ | account, stdout=subprocess.DEVNULL) as run:
        while len(steps(out)) < half and run.poll() is None:
            time.sleep(0.1)
        at = len(steps(out))
        OUTAGES[outage](server)
    assert run.returncode == 0
    times = steps(out)
    warm = half // 4
    return statistics.median(times[warm:at]), statistics.median(times[at + 1 :])


def steps(out: Path) -> list[float]:
    """Return the times of a step that a run has logged so far, in ms."""
    if not (out / "metrics.csv").exists():
        return []
    with (out / "metrics.csv").open() as file:
        speeds = [row.get("train/vectors_per_second") for row in csv.DictReader(file)]
    return [1024 * 1000 / float(speed) for speed in speeds if speed]


def main(given: list[str] | None = None) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vectors", type=int, default=204_800)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="to see that it runs")
    arguments = parser.parse_args(given)
    if arguments.quick:
        arguments.vectors, arguments.repeats = 40_960, 1
    print(machine("cpu", threads=2), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        found = guards(Path(folder), arguments.vectors) | outages(Path(folder), arguments)
    write_json(arguments.json, found)


if __name__ == "__main__":
    main()
