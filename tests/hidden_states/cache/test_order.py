"""A true global shuffle whose whole state is one integer."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from dictlearn.errors import InputError
from dictlearn.hidden_states import CachedDataModule
from dictlearn.hidden_states.batch import HiddenStates
from tests.hidden_states.cache.conftest import MakeCache, cached, everything, same_rows
from tests.hidden_states.conftest import Reversed
from tests.hidden_states.test_datamodule import Watch, trainer


def at_step(module: CachedDataModule, step: int, rank: int = 0, world: int = 1) -> CachedDataModule:
    """The same module as process `rank`, in a run that is at a step."""
    place = SimpleNamespace(
        global_step=step,
        global_rank=rank,
        world_size=world,
        is_global_zero=rank == 0,
        strategy=SimpleNamespace(),
    )
    module.trainer = place  # type: ignore[assignment]
    return module


def test_every_epoch_holds_every_row_once_in_an_order_of_its_own(cache_folder: Path) -> None:
    n_rows = cached(cache_folder).source.n_rows
    size = max(b for b in range(1, 200) if n_rows % b == 0)
    batches = list(cached(cache_folder, 3 * n_rows, batch_size=size).train_dataloader())
    steps = n_rows // size
    epochs = [HiddenStates.concatenate(batches[i * steps : (i + 1) * steps]) for i in range(3)]
    rows = everything(cached(cache_folder))
    for epoch in epochs:
        assert same_rows(epoch, rows)
    assert not torch.equal(epochs[0].vectors, epochs[1].vectors)


def test_batches_are_mixed_over_shards_documents_and_layers(cache_folder: Path) -> None:
    rows = everything(cached(cache_folder))
    batch = next(iter(cached(cache_folder, batch_size=256).train_dataloader()))
    for column in ("layer", "document"):
        whole, part = getattr(rows, column).float(), getattr(batch, column).float()
        assert float(part.mean()) == pytest.approx(
            float(whole.mean()), abs=5 * float(whole.std()) / 16
        )
    n_documents = len(set(rows.document.tolist()))
    assert len(set(batch.document.tolist())) > 0.7 * n_documents


def test_a_batch_goes_on_into_the_next_epoch(cache_folder: Path) -> None:
    n_rows = cached(cache_folder).source.n_rows
    module = cached(cache_folder, 3 * n_rows, batch_size=n_rows - 5)
    first, second, *_ = module.train_dataloader()
    both = HiddenStates.concatenate([first, HiddenStates(*(c[:5] for c in second))])
    assert same_rows(both, everything(module))


@pytest.mark.parametrize("world", [2, 4])
def test_any_number_of_processes_sees_the_same_global_batches(
    world: int, cache_folder: Path
) -> None:
    alone = list(cached(cache_folder, batch_size=64).train_dataloader())
    ranks = [
        list(
            at_step(cached(cache_folder, batch_size=64 // world), 0, rank, world).train_dataloader()
        )
        for rank in range(world)
    ]
    for step, batch in enumerate(alone):
        joined = HiddenStates.concatenate([batches[step] for batches in ranks])
        assert all(torch.equal(a, b) for a, b in zip(batch, joined, strict=True))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_the_held_out_blocks(world: int, cache_folder: Path) -> None:
    alone = HiddenStates.concatenate(
        list(cached(cache_folder, validation_vectors=10**6).val_dataloader())
    )
    ranks = []
    for rank in range(world):
        module = at_step(cached(cache_folder, validation_vectors=10**6), 0, rank, world)
        ranks.append(list(module.val_dataloader()))
    assert len({len(batches) for batches in ranks}) == 1
    joined = HiddenStates.concatenate([batch for batches in ranks for batch in batches])
    keys = [set(zip(*(r[i].tolist() for i in (1, 3, 4)), strict=True)) for r in (alone, joined)]
    assert len(keys[1]) == len(joined.layer)
    assert keys[1] <= keys[0] or keys[0] <= keys[1]
    assert len(keys[0] ^ keys[1]) <= 24 * 16 * 2


@pytest.mark.parametrize("prefetch", [False, True])
def test_a_run_begins_at_any_step(prefetch: bool, cache_folder: Path) -> None:
    whole = list(cached(cache_folder).train_dataloader())
    module = at_step(cached(cache_folder, prefetch=prefetch), 6)
    loader = module.train_dataloader()
    assert len(loader) == 10
    for one, other in zip(whole[6:], list(loader), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    module.teardown()
    assert not [t for t in threading.enumerate() if t.name.startswith("hidden_states")]


def test_the_order_depends_on_the_seed_alone(cache_folder: Path) -> None:
    def first(**options: Any) -> HiddenStates:
        return next(iter(cached(cache_folder, **options).train_dataloader()))

    assert torch.equal(first().vectors, first(normalization="none").vectors)
    assert not torch.equal(first().vectors, first(seed=1).vectors)


def test_the_sample_is_the_same_everywhere_and_from_training_rows(cache_folder: Path) -> None:
    module = cached(cache_folder)
    sample = module.sample(100)
    assert sample.vectors.shape == (100, 384)
    assert torch.equal(sample.vectors, at_step(cached(cache_folder), 3, 1, 2).sample(100).vectors)
    assert len(module.sample(10**9).layer) == module.source.n_rows
    assert module.sample(0).vectors.shape == (0, module.hidden_size)


@pytest.mark.parametrize("prefetch", [False, True])
def test_a_stopped_and_resumed_training_sees_every_batch_once(
    cache_folder: Path, tmp_path: Path, prefetch: bool
) -> None:
    straight, first, second = Watch(), Watch(), Watch()
    modules = [cached(cache_folder, 320, prefetch=prefetch) for _ in range(3)]
    trainer(tmp_path, enable_checkpointing=False).fit(straight, datamodule=modules[0])
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=4, filename="at", save_top_k=-1)
    trainer(tmp_path, callbacks=[keep], max_steps=4).fit(first, datamodule=modules[1])
    trainer(tmp_path, enable_checkpointing=False).fit(
        second, datamodule=modules[2], ckpt_path=str(tmp_path / "at.ckpt")
    )
    assert len(straight.seen) == 10
    assert straight.validated > 0
    for a, b in zip(straight.seen, [*first.seen, *second.seen], strict=True):
        assert all(torch.equal(left, right) for left, right in zip(a, b, strict=True))


def test_a_run_that_goes_on_with_other_vectors_is_refused(cache_folder: Path) -> None:
    state = cached(cache_folder).state_dict()
    cached(cache_folder).load_state_dict(state)
    for options in ({"seed": 1}, {"layers": [0]}, {"batch_size": 16}):
        with pytest.raises(InputError, match="The run began with"):
            cached(cache_folder, **options).load_state_dict(state)


def test_a_run_that_goes_on_with_another_cache_of_the_same_size_is_refused(
    cache_folder: Path, make_cache: MakeCache, tmp_path: Path
) -> None:
    make_cache(tmp_path / "other", Reversed(30, validation_fraction=0.3))
    one, other = cached(cache_folder), cached(tmp_path / "other")
    assert one.source.n_rows == other.source.n_rows
    with pytest.raises(InputError, match="The run began with cache="):
        other.load_state_dict(one.state_dict())


def test_rows_come_in_the_order_in_which_they_are_asked_for(cache_folder: Path) -> None:
    module = cached(cache_folder)
    rows = everything(module)
    wanted = np.array([700, 3, 3, 1200, 0, 699, 4])
    found = module.source.gather(wanted)
    for one, other in zip(found, rows, strict=True):
        assert torch.equal(one, other[torch.from_numpy(wanted)])
