"""Small caches of the text that is made here, and runs on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dictlearn.hidden_states import CachedDataModule, CachedOptions, HiddenStateDataModule
from dictlearn.hidden_states.batch import HiddenStates
from dictlearn.hidden_states.cache.building import build
from dictlearn.hidden_states.cache.manifest import Manifest, digest_of
from dictlearn.hidden_states.options import Recipe, StreamOptions
from dictlearn.transformer import FrozenTransformer
from tests.hidden_states.conftest import SMALL, Written

SHARD = 500  # vectors
TEXT = Written(40, validation_fraction=0.2)  # of `whole`
MakeCache = Callable[..., Manifest]


def live(
    transformer: FrozenTransformer, data_dir: Path, text: Written | None = None, **options: Any
) -> HiddenStateDataModule:
    """The stream that a cache is made of."""
    chosen = StreamOptions(**{**SMALL, **options})
    text = Written(30, validation_fraction=0.3) if text is None else text
    return HiddenStateDataModule(transformer, text, chosen, seed=0, data_dir=data_dir)


@pytest.fixture(scope="session")
def make_cache(transformer: FrozenTransformer, data_dir: Path) -> MakeCache:
    """Make a cache of the small text; what is not said is as in the stream of the tests."""

    def make(path: Path, text: Written | None = None, **given: Any) -> Manifest:
        recipe = {name: given.pop(name) for name in Recipe.__dataclass_fields__ if name in given}
        chosen = Recipe(**{"path": str(path), "shard_vectors": SHARD, **recipe})
        data = live(transformer, data_dir, text, **given)
        return build(data, chosen, torch.device("cpu"), progress=False)

    return make


@pytest.fixture(scope="session")
def cache_folder(make_cache: MakeCache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished cache in float32; nobody may change it."""
    folder = tmp_path_factory.mktemp("caches") / "float32"
    make_cache(folder)
    return folder


def content(folder: Path) -> dict[str, str]:
    """Digests of all files, hidden ones too."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): digest_of(path) for path in files}


@pytest.fixture(scope="session")
def whole(make_cache: MakeCache, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What one process that is never stopped makes."""
    folder = tmp_path_factory.mktemp("whole") / "cache"
    made = make_cache(folder, TEXT, shard_vectors=200)
    assert len(made.train) > 6
    return content(folder)


def cached(path: Path, max_vectors: int = 320, seed: int = 0, **options: Any) -> CachedDataModule:
    """A run on a cache, set up; no thread reads on where a test takes only some batches."""
    chosen = CachedOptions(str(path), batch_size=32, validation_vectors=400, prefetch=False)
    module = CachedDataModule(replace(chosen, **options), max_vectors, seed)
    module.setup()
    return module


def everything(module: CachedDataModule) -> HiddenStates:
    """All training rows in the order of the disk."""
    return module.source.gather(np.arange(module.source.n_rows))


def in_order(rows: HiddenStates) -> list[NDArray[Any]]:
    """The columns, sorted by origin, for a comparison as sets."""
    keys = [column.numpy() for column in (rows.position, rows.document, rows.layer)]
    order = np.lexsort(keys)
    return [column.numpy()[order] for column in rows]


def same_rows(a: HiddenStates, b: HiddenStates) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(in_order(a), in_order(b), strict=True))
