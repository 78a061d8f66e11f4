"""A cache holds what the live stream gives: the same vectors, from the same places."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dictlearn.errors import InputError
from dictlearn.hidden_states import DataModule
from dictlearn.hidden_states.batch import HiddenStates
from dictlearn.hidden_states.cache.building import build
from dictlearn.hidden_states.options import Recipe
from dictlearn.transformer import FrozenTransformer
from tests.hidden_states.cache.conftest import (
    MakeCache,
    cached,
    everything,
    in_order,
    live,
    same_rows,
)
from tests.hidden_states.conftest import Written


def epoch_of(module: DataModule, n_rows: int) -> HiddenStates:
    """One epoch of any data module whose batch size divides it."""
    batches = list(module.train_dataloader())
    assert sum(len(batch.layer) for batch in batches) == n_rows
    return HiddenStates.concatenate(batches)


@pytest.mark.parametrize("options", [{}, {"keep_special": True, "layers": [5]}])
def test_an_epoch_of_the_live_stream_is_an_epoch_of_the_cache(
    options: dict[str, Any],
    transformer: FrozenTransformer,
    data_dir: Path,
    make_cache: MakeCache,
    tmp_path: Path,
) -> None:
    make_cache(tmp_path / "cache", **options)
    n_rows = cached(tmp_path / "cache").source.n_rows
    size = max(b for b in range(1, 200) if n_rows % b == 0)
    weights: dict[str, Any] = {"token_weight_exponent": 0.5, "batch_size": size}
    stream = live(transformer, data_dir, lanes=1, **options, **weights)
    stream.max_vectors = n_rows
    stream.setup()
    stored = cached(tmp_path / "cache", max_vectors=n_rows, **weights)
    one, other = epoch_of(stream, n_rows), epoch_of(stored, n_rows)
    if options:  # special tokens have no position of their own: they are told apart by their block
        a, b = (np.sort(rows.vectors.numpy(), axis=0) for rows in (one, other))
        assert np.array_equal(a, b)
        assert int((one.position == -1).sum()) == int((other.position == -1).sum()) > 0
    else:
        assert same_rows(one, other)
    assert len(set(other.weight.tolist())) > 3
    assert not torch.equal(one.vectors, other.vectors)


def test_held_out_vectors_are_those_of_the_live_stream_in_its_order(
    transformer: FrozenTransformer, data_dir: Path, cache_folder: Path
) -> None:
    stream = live(transformer, data_dir, lanes=8)
    stream.setup()
    stored = cached(cache_folder)
    pairs = list(zip(stream.val_dataloader(), stored.val_dataloader(), strict=True))
    assert len(pairs) > 3
    for one, other in pairs:
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("layers", [[3], [3, 0]])
def test_any_of_the_stored_layers_can_be_chosen(layers: list[int], cache_folder: Path) -> None:
    whole, part = cached(cache_folder), cached(cache_folder, layers=layers)
    assert part.layers == tuple(layers)
    rows = everything(whole)
    keep = torch.isin(rows.layer, torch.tensor(layers))
    assert same_rows(HiddenStates(*(column[keep] for column in rows)), everything(part))
    of_layer = {layer: whole.layers.index(layer) for layer in layers}
    mean = whole.statistics.mean[[of_layer[layer] for layer in layers]]
    assert torch.equal(part.statistics.mean, mean)
    batch = next(iter(part.val_dataloader()))
    assert set(batch.layer.tolist()) == set(layers)


def test_layers_that_are_not_there_are_named(cache_folder: Path) -> None:
    for layers in ([1], [0, 0], "every_second", []):
        with pytest.raises(InputError, match=r"hidden_states\.layers"):
            cached(cache_folder, layers=layers)


@pytest.mark.parametrize("kind", ["none", "center", "unit_scale", "center_unit_scale"])
def test_statistics_are_those_of_all_training_vectors(kind: str, cache_folder: Path) -> None:
    module = cached(cache_folder, normalization=kind)
    rows = everything(module)
    for place, layer in enumerate(module.layers):
        vectors = rows.vectors[rows.layer == layer].double()
        mean = vectors.mean(0)
        centred = vectors - mean if kind.startswith("center") else vectors
        scale = centred.square().sum(1).mean().sqrt()
        assert torch.allclose(module.statistics.mean[place].double(), mean, atol=1e-6)
        assert float(module.statistics.scale[place]) == pytest.approx(float(scale), rel=1e-6)
        assert float(module.statistics.norm[place]) == pytest.approx(
            float(vectors.norm(dim=1).mean()), rel=1e-6
        )


def test_statistics_of_shards_add_up(cache_folder: Path) -> None:
    merged = load_file(cache_folder / "statistics.safetensors")
    shards = [load_file(path) for path in sorted(cache_folder.glob("train-*.safetensors"))]
    assert len(shards) > 2
    for name, value in merged.items():
        parts = torch.stack([shard[f"statistics.{name}"] for shard in shards])
        assert torch.allclose(parts.sum(0), value, rtol=1e-12, atol=1e-9)
    assert int(merged["n"]) == sum(len(shard["token"]) for shard in shards)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_dtypes_are_the_rounded_vectors(
    dtype: str, cache_folder: Path, make_cache: MakeCache, tmp_path: Path
) -> None:
    made = make_cache(tmp_path / "cache", dtype=dtype)
    assert made.dtype == dtype
    exact, rounded = everything(cached(cache_folder)), everything(cached(tmp_path / "cache"))
    wanted = exact.vectors.to(getattr(torch, dtype)).float()
    assert torch.equal(rounded.vectors, wanted)
    assert torch.equal(rounded.token, exact.token)


def test_hidden_states_beyond_float16_are_refused(
    transformer: FrozenTransformer, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scaled(self: FrozenTransformer, *given: object) -> torch.Tensor:
        return original(self, *given) * 1e5  # type: ignore[arg-type]

    original = FrozenTransformer.hidden_states
    monkeypatch.setattr(FrozenTransformer, "hidden_states", scaled)
    recipe = Recipe(str(tmp_path / "cache"), dtype="float16")
    with pytest.raises(InputError, match="beyond the range of dtype=F16"):
        build(live(transformer, data_dir), recipe, torch.device("cpu"), progress=False)


def test_tokens_that_are_not_finite_have_no_weight_and_no_part_in_the_statistics(
    transformer: FrozenTransformer, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poisoned(self: FrozenTransformer, ids: torch.Tensor, *given: object) -> torch.Tensor:
        states = original(self, ids, *given)  # type: ignore[arg-type]
        states[:, ids == 1996] = float("nan")  # "the"
        return states

    original = FrozenTransformer.hidden_states
    monkeypatch.setattr(FrozenTransformer, "hidden_states", poisoned)
    data = live(transformer, data_dir)
    build(data, Recipe(str(tmp_path / "cache")), torch.device("cpu"), progress=False)
    module = cached(tmp_path / "cache")
    rows = everything(module)
    assert bool(((rows.weight == 0) == (rows.token == 1996)).all())
    assert 0 < int((rows.weight == 0).sum()) < len(rows.weight) / 4
    sound = rows.vectors[(rows.weight > 0) & (rows.layer == 3)]
    assert torch.allclose(module.statistics.mean[1], sound.mean(0), atol=1e-5)


def test_fewer_vectors_are_drawn_from_all_documents(make_cache: MakeCache, tmp_path: Path) -> None:
    make_cache(tmp_path / "some", max_vectors=400, max_validation_vectors=0)
    module = cached(tmp_path / "some")
    assert 300 < module.source.n_rows <= 400
    assert len(set(everything(module).document.tolist())) > 5
    assert module.val_dataloader() == []
    assert module.text.validation_fraction == 0


def test_contexts_and_pieces_need_neither_tokenizer_nor_text(
    transformer: FrozenTransformer, data_dir: Path, cache_folder: Path
) -> None:
    stream, stored = live(transformer, data_dir), cached(cache_folder)
    stream.setup()
    rows = next(iter(stored.val_dataloader()))
    for document, position in zip(rows.document.tolist(), rows.position.tolist(), strict=True):
        there = stream.context(document, position, 3, 3)
        assert stored.context(document, position, 3, 3) == there
        assert stored.decode_tokens(there.ids) == stream.decode_tokens(there.ids)
    assert stored.store.document_ids == stream.store.document_ids


def test_the_manifest_says_what_it_is_of(
    cache_folder: Path, transformer: FrozenTransformer
) -> None:
    about = json.loads((cache_folder / "manifest.json").read_text())
    assert about["transformer"] == json.loads(json.dumps(transformer.describe()))
    assert about["text"] == {
        "source": "written:30",
        "block_length": 16,
        "special_tokens": "model",
    }
    assert about["recipe"]["hidden_states.layers"] == [0, 3]
    assert about["dtype"] == "float32"
    for entry in (*about["train"], *about["validation"], *about["files"]):
        assert (cache_folder / entry["file"]).stat().st_size == entry["bytes"]


def test_kept_rows_of_another_text_stay_in_their_place(
    make_cache: MakeCache, tmp_path: Path
) -> None:
    make_cache(tmp_path / "cache", Written(12), block_length=7)
    columns = in_order(everything(cached(tmp_path / "cache")))
    document, position = columns[3], columns[4]
    for layer in (0, 3):
        here = columns[1] == layer
        for number in set(document.tolist()):
            places = position[here & (document == number)]
            assert places.tolist() == list(range(len(places)))
