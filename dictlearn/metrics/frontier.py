"""The frontier: what every sparse inference makes of one dictionary, at several L0.

Legend: n rows, d width, m atoms, L tapped layers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.metrics.per_layer import LayerFVU

ROWS_AT_ONCE = 1024


class Point(NamedTuple):
    """One inference at one sparsity, on held-out vectors.

    Attributes:
        method: name of the inference.
        wanted: the L0 that was asked for.
        l0: the mean L0 that came out.
        fvu: fraction of variance unexplained, in the raw space, over all layers.
        microseconds: of one vector, wall time, in batches of `ROWS_AT_ONCE`.
        gap: mean relative duality gap; nan where codes are counted, not priced.
        worst_gap: that of the worst vector.
    """

    method: str
    wanted: int
    l0: float
    fvu: float
    microseconds: float
    gap: float
    worst_gap: float


class Coded(NamedTuple):
    """What an inference says about a chunk of `n` rows.

    Attributes:
        codes: the codes.
        gap: relative duality gaps `[n]`, or None.
    """

    codes: Codes
    gap: Tensor | None


class HeldOut(NamedTuple):
    """Vectors to measure on.

    Attributes:
        vectors: raw hidden states `[n, d]`.
        x: the same as they are coded, normalised and less the bias, `[n, d]`.
        row: tapped layer of every vector, counted from 0, int64 `[n]`.
        n_layers: L.
    """

    vectors: Tensor
    x: Tensor
    row: Tensor
    n_layers: int


@torch.no_grad()
def measure(
    method: str,
    wanted: int,
    held_out: HeldOut,
    infer: Callable[[Tensor, Tensor], Coded],
    raw: Callable[[Codes, Tensor], Tensor],
) -> Point:
    """Code all vectors and return the figures.

    Args:
        method: its name.
        wanted: the L0 asked for.
        held_out: the vectors.
        infer: `x [n, d], row [n] -> codes`; only this is timed.
        raw: `codes, row [n] -> hidden states [n, d]`.
    """
    first, _ = next(_chunks(held_out))
    # Compiles what is compiled on first use; for few rows another way might be taken.
    infer(first, held_out.row[: len(first)])
    fvu = LayerFVU(held_out.n_layers, held_out.vectors.shape[1]).to(held_out.x.device)
    seconds, l0, gaps = 0.0, [], []
    for x, at in _chunks(held_out):
        row = held_out.row[at]
        begin = _now(x.device)
        coded = infer(x, row)
        seconds += _now(x.device) - begin
        fvu.update(held_out.vectors[at], raw(coded.codes, row), row)
        l0.append(coded.codes.l0())
        if coded.gap is not None:
            gaps.append(coded.gap)
    gap = torch.cat(gaps).double() if gaps else torch.tensor([torch.nan])
    return Point(
        method,
        wanted,
        float(torch.cat(l0).double().mean()),
        float(fvu.compute()[-1]),
        1e6 * seconds / len(held_out.x),
        float(gap.mean()),
        float(gap.max()),
    )


def _chunks(held_out: HeldOut) -> Iterator[tuple[Tensor, slice]]:
    for start in range(0, len(held_out.x), ROWS_AT_ONCE):
        at = slice(start, start + ROWS_AT_ONCE)
        yield held_out.x[at], at


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
