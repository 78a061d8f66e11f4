"""Layers on candidates without gradients, compiled: what `sparse_layers` computes, and faster.

Legend: n rows, m atoms, d width, c candidates per row, T layers.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.inference.engine import pick, use_threads
from dictlearn.inference.layers import Layer, Pairs, as_pairs
from dictlearn.inference.sparsify import Counting, screened
from dictlearn.kernels import reconstruct, top_indices
from dictlearn.kernels.selection import sortable
from dictlearn.kernels.sheets import Layer as Scored
from dictlearn.kernels.sheets import is_fast, sheets


def runs_compiled(engine: str, x: Tensor, layers: Sequence[Layer], momentum: bool) -> bool:
    """Return whether `compiled_layers` can take these layers.

    Raises:
        InputError: the engine has no such name, or it is asked for and cannot run here.
    """
    if not pick(engine, x) or torch.is_grad_enabled() or x.dtype != torch.float32 or momentum:
        return False
    first = layers[0]
    return all(one.weight is first.weight and one.synthesis is first.synthesis for one in layers)


@torch.no_grad()
def compiled_layers(
    x: Tensor, layers: Sequence[Layer], initial: Codes | None, make: Counting
) -> Codes:
    """Return the codes that `sparse_layers` returns, up to the order within a row.

    Args:
        x: `[n, d]`, float32 on a CPU.
        layers: T of them, which differ in their steps and thresholds only.
        initial: codes to start from, zeros if None.
        make: the sparsity, which has a screening.
    """
    assert make.screening is not None
    left, pairs = x.clone(), None
    if initial is not None:
        left, pairs = x - reconstruct(initial, layers[0].synthesis), as_pairs(initial)
    codes = x.new_empty(0)
    bounds = [*sorted({0, *make.screening.at}), len(layers)]
    for first, end in itertools.pairwise(bounds):
        kept = [make.k] * (end - first)
        if end == len(layers) and make.cut is not None:
            kept[-1] = make.screening.n_candidates
        part = layers[first:end]
        # The last layer's codes are those of use, and not rounded.
        rough = len(part) > 1 and is_fast(make.selection, part[0].weight)
        candidates, known = _screened(left * part[0].step, part[0], make, pairs, rough)
        codes = _part(x, left, part, kept, candidates, pairs, known, end == len(layers))
        pairs = codes, candidates
    wide = Codes(codes, candidates, len(layers[0].weight))
    if make.cut is not None:
        return make.shared(wide)
    places = top_indices(codes, make.k)
    return Codes(codes.gather(1, places), candidates.gather(1, places), wide.n_atoms)


def _screened(
    residual: Tensor, layer: Layer, make: Counting, start: Pairs | None, rough: bool
) -> tuple[Tensor, Tensor]:
    """Return the candidates of every row and, if rounded ones will do, their scores `[n, c]`.

    Scores rounded to 8 bits do for the codes of an inner layer, which the next one corrects, and
    are at hand: to compute them anew is most of a layer.
    """
    assert make.screening is not None
    c = make.screening.n_candidates
    if not rough:
        return screened(residual, layer, c, start), residual[:, :0]
    scored = Scored(residual, layer.weight, layer.threshold, *(start or (None, None)))
    chosen = torch.empty(len(residual), c, dtype=torch.int64)
    known = residual.new_empty(len(residual), c)
    for rows, scores in sheets(scored, fast=True):
        bits = sortable(scores)
        # Thresholds leave many a row fewer than c positive scores; of negative bits the order
        # is reversed.
        best = top_indices((bits >> 15).bitwise_and_(0x7FFF).bitwise_xor_(bits), c)
        chosen[rows], known[rows] = best, scores.gather(1, best)
    return chosen, known


def _part(
    x: Tensor,
    left: Tensor,
    layers: Sequence[Layer],
    kept: list[int],
    candidates: Tensor,
    start: Pairs | None,
    known: Tensor,
    last: bool,
) -> Tensor:
    """Return the candidates' codes `[n, c]` after layers that share them; `left` is updated."""
    from dictlearn.inference.compiled.layers import restricted_layers

    values, indices = (x[:, :0], candidates[:, :0]) if start is None else start
    use_threads()
    found = restricted_layers(
        _array(x),
        (_array(layers[0].weight), _array(layers[0].synthesis)),
        np.array([float(one.step) for one in layers], np.float32),
        _array(torch.stack([one.threshold for one in layers])),
        np.array(kept),
        candidates.numpy(),
        (_array(values), indices.contiguous().numpy()),
        left.numpy(),
        _array(known),
        last,
    )
    return torch.from_numpy(found)


def _array(tensor: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return tensor.detach().contiguous().numpy()
