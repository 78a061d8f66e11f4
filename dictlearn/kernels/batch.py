"""Choices in which every row keeps as many codes as it deserves: batch top-k and thresholds.

Legend: n rows, m atoms, k kept codes per row in the mean, w of the fullest row, z kept in all,
g groups per row.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dictlearn import processes
from dictlearn.kernels.layers import activations
from dictlearn.kernels.selection import sortable
from dictlearn.kernels.sheets import Layer, sheets
from dictlearn.kernels.sparse import Places

GROUP = 8
"""Scores that are skipped or looked at together, where it divides m."""

SAMPLE = 128
"""Rows, evenly spaced, from which the smallest kept score of a batch is guessed."""

MARGIN = 1.3
"""Candidates per kept score that the guess aims at."""

FULL = 1 / 11
"""Share of kept scores above which dense products are faster than sparse ones: at 1/16 a layer
and its gradients took 0.66 of the dense time, at 1/8 1.24 (m=3072, d=384, n=4096)."""


def batch_top(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the `n k` largest positive scores of the whole batch, fewer if there are fewer.

    Args:
        scores: `[n, m]`.
        k: kept per row in the mean.

    Returns:
        Values and int64 indices `[n, w]`, padded by `padded`.
    """
    scores = scores.contiguous()
    sample = scores[_spaced(n := len(scores))]
    floor = _guess(sample, k)
    places = _reaching(scores, _positive(floor, scores))
    while floor > 0 and len(places) < n * k:
        floor = _lower(floor, float(sample.max()))
        places = _reaching(scores, _positive(floor, scores))
    return padded(*_largest(scores.view(-1)[places], places, n * k), (n, scores.shape[1]))


def above(scores: Tensor, threshold: Tensor | float) -> tuple[Tensor, Tensor]:
    """Return the scores above a threshold and above 0.

    Args:
        scores: `[n, m]`.
        threshold: a number, or one for every atom, `[m]`.

    Returns:
        Values and int64 indices `[n, w]`, padded by `padded`.
    """
    kept = scores > torch.as_tensor(threshold, dtype=scores.dtype).clamp_min(0)
    return padded(scores[kept], _nonzero(kept), (len(scores), scores.shape[1]))


def padded(values: Tensor, places: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return entries of an `[n, m]` matrix as k-sparse rows.

    Args:
        values: `[z]`.
        places: their places in the flattened matrix, row by row, int64 `[z]`.
        shape: `(n, m)`.

    Returns:
        Values and int64 indices `[n, w]`, `w` at least 1: rows with fewer entries end with zeros
        at atoms that they do not have otherwise.
    """
    n, m = shape
    row, column = places // m, places % m
    counts = torch.bincount(row, minlength=n)
    width = max(1, int(counts.max()))
    starts = _starts(counts)
    slot = torch.arange(len(places)) - starts[row]
    kept = values.new_zeros(n, width)
    indices = torch.arange(width).repeat(n, 1)
    kept.view(-1)[row * width + slot] = values
    indices.view(-1)[row * width + slot] = column
    # A slot left over has the atom of its own number, unless the row keeps that atom: then it
    # takes the next of those that have the numbers of its filled slots and are not kept.
    low = column < counts[row]
    spare = torch.ones(len(places), dtype=torch.bool)
    spare[(starts[row] + column)[low]] = False
    twice = ~low & (column < width)
    there = row[twice]
    rank = torch.arange(len(there)) - _starts(torch.bincount(there, minlength=n))[there]
    following = _starts(torch.bincount(row[spare], minlength=n))[there] + rank
    indices.view(-1)[there * width + column[twice]] = slot[spare][following]
    return kept, indices


def choose_batch(layer: Layer, k: int, fast: bool) -> tuple[Tensor, Tensor]:
    """Keep the `n k` largest of the batch, which may be shared out over processes.

    A sample of rows tells roughly where the smallest of them lies; what reaches that floor is
    collected while the sheets pass by. If the guess was too high they pass once more. Processes
    have one floor, the lowest of their guesses, and so pass equally often.
    """
    n, m = len(layer.residual), layer.n_atoms
    wanted = int((1.05 if fast else 1.0) * n * k)
    sample = torch.cat([scores for _, scores in sheets(layer.rows(_spaced(n)), fast)])
    guesses = torch.tensor([_guess(sample, k), -float(sample.max())], dtype=torch.float64)
    floor, top = processes.smallest(guesses).tolist()
    places = torch.empty(0, dtype=torch.int64)
    while floor > 0 and _are_fewer(places, wanted):
        places = _collected(layer, fast, torch.full((n, 1), floor))
        floor = _lower(floor, -top)
    if _are_fewer(places, wanted):
        places = _collected(layer, fast, _rounding(layer, fast))
    values = activations(layer, _as_places(places, n, m))
    if processes.world_size() > 1:
        kept = processes.among_largest(values, n * k)
        return padded(values[kept], places[kept], (n, m))
    return padded(*_largest(values, places, n * k), (n, m))


def choose_above(layer: Layer, cut: Tensor, fast: bool) -> tuple[Tensor, Tensor]:
    """Keep what is above `cut`, 0-dimensional or `[m]`, none negative.

    The candidates are those whose score less the cut may be positive, were it computed exactly.
    """
    n, m = len(layer.residual), layer.n_atoms
    lowered = layer._replace(threshold=layer.threshold + cut)
    places = _collected(lowered, fast, _rounding(lowered, fast))
    values = activations(layer, _as_places(places, n, m))
    kept = values > cut.expand(m)[places % m]
    return padded(values[kept], places[kept], (n, m))


def is_sparse(layer: Layer, cut: Tensor) -> bool:
    """Return whether so few scores are above `cut` that sparse codes are worth it."""
    sample = layer.rows(_spaced(len(layer.residual)))
    with torch.no_grad():
        shares = [(scores > cut).float().mean() for _, scores in sheets(sample, fast=False)]
    return bool(torch.stack(shares).mean() < FULL)


def _spaced(n: int) -> Tensor:
    return torch.linspace(0, n - 1, min(n, SAMPLE)).round().long()


def _guess(sample: Tensor, k: int) -> float:
    """Return a floor that more than `k` scores per row reach; 0 if no more are positive."""
    flat = sample.reshape(-1).float().numpy()
    rank = min(len(flat), int(MARGIN * k * len(sample)) + 8)
    return max(0.0, float(np.partition(flat, len(flat) - rank)[len(flat) - rank]))


def _lower(floor: float, top: float) -> float:
    """Return the next floor to try: half as high, and soon 0; `top` is the largest score."""
    return floor / 2 if floor > 0.05 * top else 0.0


def _are_fewer(places: Tensor, wanted: int) -> bool:
    """Return whether all processes together have fewer places than they want."""
    there, needed = processes.total(torch.tensor([len(places), wanted])).tolist()
    return bool(there < needed)


def _collected(layer: Layer, fast: bool, least: Tensor) -> Tensor:
    """Return the places of the scores of all rows that reach `least: [n, 1]`, int64 `[z]`."""
    least, found = least.to(torch.bfloat16 if fast else layer.weight.dtype), []
    for rows, scores in sheets(layer, fast):
        found.append(_reaching(scores, least[rows]).add_(rows.start * layer.n_atoms))
    return torch.cat(found)


def _reaching(scores: Tensor, least: Tensor) -> Tensor:
    """Return the places of the scores of at least `least: [n, 1]`, row by row, int64 `[z]`."""
    n, m = scores.shape
    if scores.dtype == torch.bfloat16 and bool((least > 0).all()):
        scores, least = sortable(scores), sortable(least)
    if m % GROUP:
        return _nonzero(scores >= least)
    groups = m // GROUP
    hit = _nonzero(scores.view(n, GROUP, groups).amax(1) >= least)
    row = hit.div(groups, rounding_mode="floor")
    members = (row * (m - groups) + hit)[:, None] + torch.arange(0, m, groups)
    return members[scores.view(-1)[members] >= least[row]]


def _positive(floor: float, scores: Tensor) -> Tensor:
    """Return the floor as the least score of every row, `[n, 1]`, in any case above 0."""
    least = max(floor, torch.finfo(scores.dtype).smallest_normal)
    return scores.new_full((len(scores), 1), least)


def _starts(counts: Tensor) -> Tensor:
    """Return where every row begins when rows with so many entries follow each other, `[n]`."""
    return counts.cumsum(0) - counts


def _nonzero(mask: Tensor) -> Tensor:
    """Return the places of what is true in the flattened mask; numpy takes a third of the time."""
    found: Tensor = torch.from_numpy(np.flatnonzero(mask.numpy()))
    return found


def _largest(values: Tensor, places: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` largest positive values and their places, in the order they have."""
    kept = values > 0
    if int(kept.sum()) > count:
        split = len(values) - count
        precise = values.to(torch.promote_types(values.dtype, torch.float32)).numpy()
        chosen = torch.from_numpy(np.argpartition(precise, split)[split:])
        kept = torch.zeros_like(kept).index_fill_(0, chosen, True)
    return values[kept], places[kept]


def _as_places(flat: Tensor, n: int, m: int) -> Places:
    """Return places of the flattened matrix, row by row, as places of its rows."""
    # In no order within a row, yet every row's begin divides the smaller from the larger ones.
    starts: Tensor = torch.searchsorted(flat, torch.arange(0, n * m + 1, m))
    return Places(starts, flat % m, None)


def _rounding(layer: Layer, fast: bool) -> Tensor:
    """Return how far below 0 a score that is not may fall by rounding alone, `[n, 1]`.

    bfloat16 has 8 bits: every product is off by up to 2^-8 of itself, the sum by a random walk
    of such steps, of which `|x| |w| / 2^9` is far outside; codes to start from by 2^-8 of them.
    """
    bits = 2.0**-9 if fast else torch.finfo(layer.weight.dtype).eps
    size = layer.residual.norm(dim=1) * layer.weight.norm(dim=1).max()
    size = size + layer.threshold.abs().max() * (2.0**-8 if fast else 1.0)
    if layer.values is not None:
        size = size + 4 * layer.values.abs().amax(1)
    slack: Tensor = -bits * size[:, None]
    return slack
