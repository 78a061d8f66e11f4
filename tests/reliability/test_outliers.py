"""Attention sinks and other vectors that are far longer than all others."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from dictlearn.callbacks.left_out import LeftOut
from dictlearn.dictionary import Dictionary
from dictlearn.hidden_states import CachedDataModule, CachedOptions, HiddenStateDataModule
from dictlearn.hidden_states.cache.building import build
from dictlearn.hidden_states.options import Recipe
from dictlearn.inference import WorkingSet
from dictlearn.learner import DictionaryLearner
from dictlearn.prox import Soft
from dictlearn.transformer import FrozenTransformer
from dictlearn.update import Adam
from tests.small_run import small_data, small_trainer

N, D, M = 16_384, 24, 32


def recovered(
    rows: Tensor, truth: Tensor, place: Path, max_norm: float | None
) -> tuple[float, float]:
    """Return which share of the true atoms a run on a file of vectors finds, and which of the
    vectors it leaves out.
    """
    np.save(place / "x.npy", rows.numpy())
    options = CachedOptions(
        str(place / "x.npy"),
        batch_size=256,
        normalization="unit_scale",
        max_norm=max_norm,
        validation_fraction=0.0,
    )
    data = CachedDataModule(options, max_vectors=3 * N)
    learner = DictionaryLearner(
        Dictionary(2 * M, width=D, initialization="data", seed=1),
        Soft(0.1),
        WorkingSet(),
        Adam(0.01, warmup_vectors=0),
        max_vectors=data.max_vectors,
    )
    left_out = LeftOut()
    trainer = small_trainer(place, [left_out], limit_val_batches=0)
    trainer.fit(learner, datamodule=data)
    nearest = (truth @ learner.dictionary.atoms.detach().T).amax(1)
    return float((nearest > 0.95).float().mean()), left_out.fraction(trainer)


@pytest.mark.run
def test_atoms_are_found_in_spite_of_outliers(tmp_path: Path) -> None:
    """B3 one vector in 1,024 is 3,000 times as long: left out, and as many atoms are found as
    without them.
    """
    draws = torch.Generator().manual_seed(5)
    truth = normalize(torch.randn(M, D, generator=draws), dim=1)
    codes = torch.rand(N, M, generator=draws) * (torch.rand(N, M, generator=draws) < 3 / M)
    clean = codes @ truth + 0.02 * torch.randn(N, D, generator=draws)
    planted, places = clean.clone(), torch.arange(500, N, 1024)
    planted[places] = 3000 * normalize(torch.randn(len(places), D, generator=draws), dim=1)
    found, share = recovered(clean, truth, tmp_path, 10.0)
    assert (found > 0.95, share) == (True, 0.0)
    again, share = recovered(planted, truth, tmp_path, 10.0)
    assert again >= found - 0.01
    assert share == len(places) / N
    kept, share = recovered(planted, truth, tmp_path, None)
    assert (kept < 0.5, share) == (True, 0.0)


class Sinks(FrozenTransformer):
    """Its first token of every sequence is 300 times as long in layer 3."""

    def hidden_states(self, ids: Tensor, mask: Tensor, layers: Any) -> Tensor:
        found = super().hidden_states(ids, mask, layers).clone()
        found[list(layers).index(3), :, 1] *= 300  # behind [CLS], which is no text
        return found


def stream(model: Path, text: Path, place: Path, **options: Any) -> HiddenStateDataModule:
    """A small stream, set up, of a model with sinks unless told otherwise."""
    kind = options.pop("kind", Sinks)
    data = small_data(model, text, place, block_length=32, **options)
    data.transformer = kind(str(model), dtype="float32")
    data.prepare_data()
    data.setup()
    return data


def test_sinks_of_a_transformer_are_left_out(
    minilm_folder: Path, text_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """B3 the first token of every sequence is an attention sink: no weight in any layer, a
    neighbour's vectors, statistics as without, and one warning.
    """
    caplog.set_level(logging.WARNING)
    sinks = stream(minilm_folder, text_folder, tmp_path)
    without = stream(minilm_folder, text_folder, tmp_path, kind=FrozenTransformer)
    spoilt = stream(minilm_folder, text_folder, tmp_path, max_norm=None)
    scale = without.statistics.scale
    torch.testing.assert_close(sinks.statistics.scale, scale, rtol=0.02, atol=0)
    assert spoilt.statistics.scale[1] > 20 * scale[1]
    for rows, count in ((sinks.sample(2000), 1), (without.sample(2000), 0)):
        first = rows.position % 32 == 0
        assert int(first.sum()) > 20
        assert torch.equal(rows.weight == 0, first if count else torch.zeros_like(first))
        assert rows.vectors.norm(dim=1).max() < 20
    said = [r.getMessage() for r in caplog.records if "max_norm" in r.getMessage()]
    assert len(said) == 1
    assert "hidden_states[3]" in said[0]
    assert ".txt#" in said[0]


@pytest.mark.run
def test_a_cache_leaves_out_what_the_stream_leaves_out(
    minilm_folder: Path, text_folder: Path, tmp_path: Path
) -> None:
    """B3 sinks in hidden states on disk: those of the live stream have no weight, no others."""
    live = stream(minilm_folder, text_folder, tmp_path)
    build(live, Recipe(str(tmp_path / "cache")), torch.device("cpu"), progress=False)
    stored = CachedDataModule(CachedOptions(str(tmp_path / "cache"), normalization="unit_scale"))
    stored.setup()
    rows, every = stored.sample(10**9), live.sample(10**9)
    assert len(rows.weight) == len(every.weight)
    places = [
        {(int(d), int(p)) for d, p in zip(x.document[w], x.position[w], strict=True)}
        for x in (rows, every)
        for w in [x.weight == 0]
    ]
    assert places[0] == places[1]
    assert len(places[0]) == pytest.approx(len(rows.weight) / 2 / 32, rel=0.2)
    assert rows.vectors.norm(dim=1).max() < 20
