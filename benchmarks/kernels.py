"""Every operation on k-sparse codes, dense torch against ours: milliseconds and their ratio.

    python benchmarks/kernels.py [--device cuda|cpu] [--quick] [--json FILE] [--repeats 20]
        [--precision highest|high] [--threads 1]

Defaults: n = 4096 rows, d = 768, m = 24576 atoms, k = 32; ``--quick`` takes n = 512, d = 128, m = 2048. Dense is
what autograd does with whole ``[n, m]`` codes. Ours is `dictlearn.kernels`: on ``cuda`` the Triton kernels, on
``cpu`` the CPU kernels, timed by the process's CPU clock. Both run in turns and the medians are shown. With
``--precision high`` float32 products of both sides may use TF32. The data are Gaussian rows and unit atoms; a tenth
of the rows shares one atom, as dense atoms of real dictionaries do.
"""  # noqa: E501

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from benchmarks.table import Cell, Table, machine, write_json
from dictlearn.codes import Codes
from dictlearn.kernels import reconstruct, top_indices, topk_layer

Run = Callable[[], object]


class Sizes(NamedTuple):
    """Rows, width, atoms and kept codes."""

    n: int
    d: int
    m: int
    k: int


class Operands(NamedTuple):
    """One layer's tensors: rows, unit atoms, thresholds, codes and an upstream gradient."""

    rows: Tensor
    atoms: Tensor
    threshold: Tensor
    values: Tensor
    indices: Tensor
    grad: Tensor


def operands(sizes: Sizes, device: str) -> Operands:
    """Draw them."""
    torch.manual_seed(0)
    n, d, m, k = sizes
    rows = torch.randn(n, d, device=device)
    atoms = torch.nn.functional.normalize(torch.randn(m, d, device=device), dim=1)
    scores = rows @ atoms.T
    scores[: n // 10, 7] += 100.0
    values, indices = scores.topk(k, dim=1, sorted=False)
    threshold = torch.full((m,), 0.1, device=device)
    return Operands(rows, atoms, threshold, values, indices, torch.randn_like(rows))


def dense_layer(rows: Tensor, atoms: Tensor, threshold: Tensor, k: int) -> Tensor:
    """Return TopK codes `[n, m]` as plain torch writes them."""
    scores = torch.addmm(-threshold, rows, atoms.T)
    kept = scores.topk(k, dim=1, sorted=False)
    return torch.zeros_like(scores).scatter(1, kept.indices, kept.values.relu())


def dense_decode(values: Tensor, indices: Tensor, atoms: Tensor) -> Tensor:
    """Return the reconstruction through a dense `[n, m]` code."""
    sheet = values.new_zeros(len(values), len(atoms))
    return sheet.scatter(1, indices, values) @ atoms


def pairs(given: Operands, k: int) -> dict[str, Callable[[], tuple[Run, Run]]]:
    """Return name -> maker of (dense, ours): a pair may hold dense graphs, so one at a time."""
    rows, atoms, threshold, values, indices, grad = given
    scores = torch.addmm(-threshold, rows, atoms.T)

    def ours_decode(values: Tensor, atoms: Tensor) -> Tensor:
        return reconstruct(Codes(values, indices, len(atoms)), atoms)

    def no_grad(run: Run) -> Run:
        return torch.no_grad()(run)

    def gradient(outputs: Callable[..., Tensor], *leaves: Tensor) -> Run:
        leaves = tuple(leaf.clone().requires_grad_() for leaf in leaves)
        result = outputs(*leaves)
        upstream = grad if result.shape == grad.shape else torch.ones_like(result)
        return lambda: torch.autograd.grad(result, leaves, upstream, retain_graph=True)

    def step(layer: Callable[..., Tensor]) -> Run:
        leaves = tuple(tensor.clone().requires_grad_() for tensor in (rows, atoms, threshold))
        return lambda: torch.autograd.grad(layer(*leaves), leaves, grad)

    def dense_step(rows: Tensor, atoms: Tensor, threshold: Tensor) -> Tensor:
        return dense_layer(rows, atoms, threshold, k) @ atoms

    def ours_step(rows: Tensor, atoms: Tensor, threshold: Tensor) -> Tensor:
        return reconstruct(topk_layer(rows, atoms, threshold, k), atoms)

    def dense_codes(rows: Tensor, atoms: Tensor, threshold: Tensor) -> Tensor:
        return dense_layer(rows, atoms, threshold, k)

    def ours_codes(rows: Tensor, atoms: Tensor, threshold: Tensor) -> Tensor:
        return topk_layer(rows, atoms, threshold, k).values

    return {
        "selection of k": lambda: (
            no_grad(lambda: scores.topk(k, dim=1, sorted=False)),
            no_grad(lambda: top_indices(scores, k)),
        ),
        "topk layer": lambda: (
            no_grad(lambda: dense_layer(rows, atoms, threshold, k)),
            no_grad(lambda: topk_layer(rows, atoms, threshold, k)),
        ),
        "topk layer, gradients": lambda: (
            gradient(dense_codes, rows, atoms, threshold),
            gradient(ours_codes, rows, atoms, threshold),
        ),
        "decode": lambda: (
            no_grad(lambda: dense_decode(values, indices, atoms)),
            no_grad(lambda: ours_decode(values, atoms)),
        ),
        "code gradient": lambda: (
            gradient(lambda leaf: dense_decode(leaf, indices, atoms), values),
            gradient(lambda leaf: ours_decode(leaf, atoms), values),
        ),
        "weight gradient": lambda: (
            gradient(lambda leaf: dense_decode(values, indices, leaf), atoms),
            gradient(lambda leaf: ours_decode(values, leaf), atoms),
        ),
        "layer and decode, all gradients": lambda: (step(dense_step), step(ours_step)),
    }


def milliseconds(run: Run, device: str) -> float:
    """Return the time of one run: on the GPU's clock, or this process's CPU time."""
    if device == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end)
    start = time.process_time()
    run()
    return 1000 * (time.process_time() - start)


def medians(pair: tuple[Run, Run], device: str, repeats: int) -> tuple[float, float]:
    """Run both in turns, once to warm up (kernels compile), and return the medians."""
    times = [[milliseconds(run, device) for run in pair] for _ in range(repeats + 1)][1:]
    dense, ours = (statistics.median(column) for column in zip(*times, strict=True))
    return dense, ours


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cpu")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=None, help="20 on cuda, 3 on cpu")
    parser.add_argument("--precision", choices=["highest", "high"], default="highest")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: torch sees no GPU here; take --device cpu")
    torch.set_num_threads(arguments.threads)
    torch.set_float32_matmul_precision(arguments.precision)
    sizes = Sizes(512, 128, 2048, 32) if arguments.quick else Sizes(4096, 768, 24576, 32)
    repeats = arguments.repeats or (20 if arguments.device == "cuda" else 3)
    name = f"torch {torch.__version__} dense"
    table = Table(
        "Kernels, n={}, d={}, m={}, k={}, ms".format(*sizes), ["operation", name, "ours", "ratio"]
    )
    figures: dict[str, Cell] = {}
    for operation, make in pairs(operands(sizes, arguments.device), sizes.k).items():
        dense, ours = medians(make(), arguments.device, repeats)
        table.row(operation, dense, ours, dense / ours)
        key = operation.replace(",", "").replace(" ", "_")
        figures |= {f"{key}_dense_ms": dense, f"{key}_ours_ms": ours, f"{key}_ratio": dense / ours}
    table.print()
    print(machine(arguments.device, arguments.threads))
    write_json(arguments.json, figures)


if __name__ == "__main__":
    main()
