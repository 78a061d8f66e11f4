"""The vectors that every benchmark works on: training rows, and held-out rows of other documents.

    python benchmarks/vectors.py [--vectors FILE [--held FILE] | --text FILE] [--layer 4 | all]

Rows are hidden states of the embedded model (64-token blocks inside one document), or those of a
file. They are centred by the training mean and scaled to E |x|^2 = 1; `--layer all` mixes all
layers, each centred and scaled by itself. What was made is kept under `data/benchmarks/vectors/`.
Held out are documents that no training row comes from: chosen by the hash of their content, or of a
file without `--held` its last tenth, which is disjoint when the file is in the order of the text.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

ROOT = Path(__file__).resolve().parent.parent
Array = NDArray[np.float32]
HELD_OUT = 30_000
QUICK = 12_000, 1_500


class Rows(NamedTuple):
    """Where the rows are, and what they are.

    Attributes:
        train: `.npy` file of float32 `[n, d]`, centred and scaled, in random order.
        held: the same of held-out rows.
        about: one sentence for the table.
    """

    train: Path
    held: Path
    about: str

    def load(self, n_train: int | None = None, n_held: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the first training and held-out rows as tensors."""
        return (
            torch.from_numpy(np.load(self.train, mmap_mode="r")[:n_train].copy()),
            torch.from_numpy(np.load(self.held, mmap_mode="r")[:n_held].copy()),
        )


def add_arguments(parser: argparse.ArgumentParser, n_vectors: int = 300_000) -> None:
    """Add what all benchmarks take."""
    parser.add_argument("--vectors", type=Path, help=".npy, .pt or .safetensors file of [N, d]")
    parser.add_argument("--held", type=Path, help="held-out vectors, in a file of their own")
    parser.add_argument("--text", type=Path, help="text to make vectors of; else installed docs")
    parser.add_argument("--layer", default="4", help="hidden state of the embedded model, or all")
    parser.add_argument("--n-vectors", type=int, default=n_vectors, help="training rows")
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="what is kept is here")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures as one flat object")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--no-peers", action="store_true", help="our own rows only")


def configure(arguments: argparse.Namespace) -> None:
    """Set what is the same for both sides: threads and the precision of float32 products."""
    torch.set_num_threads(arguments.threads)
    torch.set_float32_matmul_precision("medium")
    if arguments.quick:
        arguments.n_vectors = min(arguments.n_vectors, QUICK[0])
    arguments.data = arguments.data.resolve()


def rows(arguments: argparse.Namespace) -> Rows:
    """Return the rows that the arguments ask for, made now if they are not kept already."""
    source = _source(arguments)
    key = hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()[:16]
    place = arguments.data / "benchmarks" / "vectors" / key
    found = Rows(place / "train.npy", place / "held.npy", "")
    if not (place / "about.json").exists():
        place.mkdir(parents=True, exist_ok=True)
        train, held = _from_file(arguments) if arguments.vectors else _from_model(arguments)
        np.save(found.train, train)
        np.save(found.held, held)
        (place / "about.json").write_text(json.dumps(source | {"key": key}, indent=1) + "\n")
    n, d = np.load(found.train, mmap_mode="r").shape
    n_held = len(np.load(found.held, mmap_mode="r"))
    about = f"{source['what']}: {n:,} training and {n_held:,} held-out rows, d = {d}"
    return found._replace(about=about)


def _source(arguments: argparse.Namespace) -> dict[str, object]:
    """Return what decides the content."""
    size: dict[str, object] = {"n": arguments.n_vectors, "quick": arguments.quick, "version": 1}
    if arguments.vectors:
        files = [path.resolve() for path in (arguments.vectors, arguments.held) if path]
        states = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
        return size | {"what": arguments.vectors.name, "files": states}
    text = str(arguments.text.resolve()) if arguments.text else "installed docs"
    name = arguments.text.name if arguments.text else "installed docs"
    layer = "layers all" if arguments.layer == "all" else f"layer {arguments.layer}"
    return size | {"what": f"embedded model, {layer}, {name}", "text": text, "layer": layer}


def _from_file(arguments: argparse.Namespace) -> tuple[Array, Array]:
    """Return training and held-out rows of a file, normalised."""
    everything = read(arguments.vectors)
    n_held = QUICK[1] if arguments.quick else HELD_OUT
    if arguments.held:
        train, held = everything, read(arguments.held)
    else:
        split = len(everything) - min(n_held, len(everything) // 10)
        train, held = everything[:split], everything[split:]
    order = np.random.default_rng(0).permutation(len(train))[: arguments.n_vectors]
    train = train[np.sort(order)][np.argsort(np.argsort(order))].astype(np.float32)
    mean, scale = _statistics(train)
    return (train - mean) / scale, (held[:n_held].astype(np.float32) - mean) / scale


def read(path: Path) -> NDArray[np.floating]:
    """Return the vectors `[N, d]` of a file, or the atoms that a benchmark kept as `.npz`.

    Raises:
        SystemExit: the file does not hold one matrix.
    """
    if path.suffix == ".npz":
        found: NDArray[np.floating] = np.load(path)["atoms"]
    elif path.suffix == ".npy":
        found = np.load(path, mmap_mode="r")
    elif path.suffix == ".safetensors":
        from safetensors.torch import load_file

        found = next(iter(load_file(path).values())).float().numpy()
    else:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        tensor = next(iter(loaded.values())) if isinstance(loaded, dict) else loaded
        found = tensor.float().numpy()
    if found.ndim != 2:
        raise SystemExit(f"{path} holds an array of shape {found.shape}: [N, d] is wanted.")
    return found


def _statistics(train: Array) -> tuple[Array, float]:
    mean = train.mean(0, dtype=np.float64).astype(np.float32)
    squares = np.square(train - mean, dtype=np.float64).sum(1)
    return mean, float(np.sqrt(squares.mean()))


def _from_model(arguments: argparse.Namespace) -> tuple[Array, Array]:
    """Return training and held-out hidden states of the embedded model, normalised per layer."""
    from dictlearn.hidden_states import HiddenStateDataModule, StreamOptions
    from dictlearn.text import InstalledDocs, LocalText
    from dictlearn.transformer import FrozenTransformer

    text = LocalText(str(arguments.text)) if arguments.text else InstalledDocs()
    layers = "all" if arguments.layer == "all" else (int(arguments.layer),)
    options = StreamOptions(
        layers=layers,
        normalization="none",
        special_tokens="none",
        validation_vectors=QUICK[1] if arguments.quick else HELD_OUT,
    )
    data = HiddenStateDataModule(
        FrozenTransformer("embedded", "float32"),
        text,
        options,
        max_vectors=arguments.n_vectors,
        data_dir=arguments.data,
    )
    data.setup()
    wanted = min(arguments.n_vectors, data.n_train_tokens * len(data.layers))
    train, train_layer = _collect(data.train_dataloader(), wanted)
    data.teardown()
    held, held_layer = _collect(data.val_dataloader(), HELD_OUT)
    for layer in data.layers:
        mean, scale = _statistics(train[train_layer == layer])
        train[train_layer == layer] = (train[train_layer == layer] - mean) / scale
        held[held_layer == layer] = (held[held_layer == layer] - mean) / scale
    return train, held


def _collect(batches: object, n: int) -> tuple[Array, NDArray[np.int64]]:
    """Return the first `n` rows of a stream and their layers."""
    vectors, layers, have = [], [], 0
    for batch in batches:  # type: ignore[attr-defined]
        vectors.append(batch.vectors.numpy())
        layers.append(batch.layer.numpy())
        have += len(batch.vectors)
        if have >= n:
            break
    return np.concatenate(vectors)[:n], np.concatenate(layers)[:n]


def fvu(x: Tensor, decoded: Tensor) -> float:
    """Return `sum |x - x_hat|^2 / sum |x - mean|^2` over rows, in float64."""
    error = (x - decoded).double().square().sum()
    return float(error / (x.double() - x.double().mean(0)).square().sum())


def main(argv: list[str] | None = None) -> None:
    """Make the vectors and say where they are."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    configure(arguments)
    found = rows(arguments)
    print(f"{found.about}\n{found.train}\n{found.held}")


if __name__ == "__main__":
    main()
