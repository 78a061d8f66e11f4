"""Why the default is what it is: held-out FVU and speed of its neighbours, on the embedded model and text.

    python benchmarks/default_run.py [--vectors 300000] [--only NAME ...] [--override KEY=VALUE ...] [--json FILE]

Every variant is a whole run of ``train.py`` in a process of its own, on the same text, model, seed and number of
vectors; the figures are those of its ``metrics.json``.
"""  # noqa: E501

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

TRAIN = Path(__file__).resolve().parent.parent / "train.py"

VARIANTS = {
    "default": [],
    "TopK autoencoder": ["experiment=topk_sae"],
    "BatchTopK autoencoder": ["experiment=batch_topk_sae"],
    "unrolled, 2 layers": ["inference=unrolled", "inference.n_layers=2"],
    "unrolled, 3 layers": ["inference=unrolled"],
    "no encoder in the exact phase": ["inference.distil=none"],
    "as many exact codes as kept": ["inference.l0_factor=1"],
    "no codes of the pursuit in training": ["inference.use_share=0"],
    "encoder of 1 layer": ["inference.encoder.n_layers=1"],
    "1536 atoms": ["dictionary.n_atoms=1536"],
    "batch 512": ["hidden_states.batch_size=512"],
}


def measure(overrides: list[str], vectors: int, place: Path) -> dict[str, float]:
    """Run one variant and return its figures."""
    out = place / "run"
    subprocess.run(
        [
            sys.executable,
            str(TRAIN),
            f"max_vectors={vectors}",
            "callbacks=none",
            "logger=none",
            "trainer.enable_progress_bar=false",
            "trainer.val_check_interval=1.0",
            f"data_dir={place / 'data'}",
            f"hydra.run.dir={out}",
            *overrides,
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    figures: dict[str, float] = json.loads((out / "metrics.json").read_text())
    for path in sorted(out.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    return figures


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vectors", type=int, default=300_000)
    parser.add_argument("--only", nargs="*", default=list(VARIANTS))
    parser.add_argument("--override", nargs="*", default=[], help="for every variant")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    flat: dict[str, float] = {}
    print(f"{'variant':34} {'FVU':>7} {'L0':>6} {'dead':>6} {'vectors/s':>10}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.only:
            overrides = [*arguments.override, *VARIANTS[name]]
            found = measure(overrides, arguments.vectors, Path(folder))
            print(
                f"{name:34} {found['val/fvu']:7.4f} {found['val/l0']:6.1f} "
                f"{found['val/dead_fraction']:6.1%} {found['train/vectors_per_second']:10,.0f}",
                flush=True,
            )
            flat |= {f"{name}/{key}": found[key] for key in ("val/fvu", "val/l0")}
            flat[f"{name}/vectors_per_second"] = found["train/vectors_per_second"]
    if arguments.json:
        arguments.json.write_text(json.dumps(flat, indent=2) + "\n")


if __name__ == "__main__":
    main()
