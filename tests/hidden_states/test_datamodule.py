from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from dictlearn.errors import InputError
from dictlearn.hidden_states.batch import HiddenStates
from tests.hidden_states.conftest import MakeModule, Reversed, Written


def test_held_out_documents_are_never_trained_on(make_module: MakeModule) -> None:
    """B10 the same text for training and validation: no held-out document is trained on."""
    module = make_module(Written(validation_fraction=0.3), max_vectors=4000)
    module.setup()
    held_out = set(module.store.held_out(0.3).nonzero()[0].tolist())
    everything = set(range(60))
    trained = {d for batch in module.train_dataloader() for d in batch.document.tolist()}
    validated = {d for batch in module.val_dataloader() for d in batch.document.tolist()}
    assert 5 < len(held_out) < 40
    assert trained == everything - held_out
    assert len(validated) > 3
    assert validated <= held_out
    assert module.n_train_tokens + module.n_validation_tokens == len(module.store.tokens)


def test_the_run_has_as_many_steps_as_the_vectors_need(make_module: MakeModule) -> None:
    module = make_module(max_vectors=321)
    module.setup()
    loader = module.train_dataloader()
    batches = list(loader)
    assert len(loader) == len(batches) == 11
    assert all(batch.vectors.shape == (32, 384) for batch in batches)
    assert module.tokens_seen(11) == 11 * 32 // 2
    assert module.hidden_size == 384
    assert module.layers == (0, 3)


def test_the_batches_fit_the_modules_normalisation(make_module: MakeModule) -> None:
    module = make_module(max_vectors=2048, normalization="center_unit_scale")
    module.setup()
    rows = HiddenStates.concatenate(list(module.train_dataloader()))
    x = module.normalization(rows.vectors, rows.layer)
    for layer in module.layers:
        part = x[rows.layer == layer]
        assert float(part.square().sum(1).mean()) == pytest.approx(1, abs=0.05)
        assert float(part.mean(0).norm()) < 0.1


def test_rare_tokens_weigh_more_and_weights_have_mean_one(make_module: MakeModule) -> None:
    module = make_module(Written(6), max_vectors=32, token_weight_exponent=0.5)
    module.setup()
    counts = torch.from_numpy(module.store.counts(~module.store.held_out(0), 30522))
    rows = next(iter(module.train_dataloader()))
    expected = counts[rows.token].double() ** -0.5
    ratio = rows.weight / expected
    assert float(ratio.max() / ratio.min()) == pytest.approx(1, abs=1e-5)
    text = torch.tensor(module.store.tokens.tolist())
    assert float((counts[text].double() ** -0.5).mean() * ratio[0]) == pytest.approx(1, abs=1e-5)


def test_kept_special_tokens_count_in_the_weights(make_module: MakeModule) -> None:
    module = make_module(Written(6), max_vectors=640, token_weight_exponent=1, keep_special=True)
    module.setup()
    rows = HiddenStates.concatenate(list(module.train_dataloader()))
    special = rows.weight[rows.position == -1]
    assert len(special)
    assert len(set(special.tolist())) == 1
    assert float(special[0]) < float(rows.weight.max())


def test_text_that_is_gone_round_again_is_said_once(
    make_module: MakeModule, caplog: pytest.LogCaptureFixture
) -> None:
    module = make_module(Written(10), max_vectors=10_000)
    with caplog.at_level(logging.INFO, logger="dictlearn"):
        module.setup()
        module.train_dataloader()
    n = 2 * module.n_train_tokens
    again = [r.getMessage() for r in caplog.records if "goes round" in r.getMessage()]
    assert len(again) == 1
    assert f"has {n} vectors ({module.n_train_tokens} tokens in 2 layers)" in again[0]
    memory = [r.getMessage() for r in caplog.records if "MiB" in r.getMessage()]
    assert len(memory) == 1
    assert "4 lanes x 1 blocks of 4 sequences" in memory[0]


@pytest.mark.parametrize(("prefetch", "blocks"), [(True, 2), (False, 1)])
def test_the_background_thread_is_used_where_it_is_asked_for(
    make_module: MakeModule,
    caplog: pytest.LogCaptureFixture,
    prefetch: bool,
    blocks: int,
) -> None:
    module = make_module(Written(10), prefetch=prefetch)
    module.setup()
    with caplog.at_level(logging.INFO, logger="dictlearn"):
        module.train_dataloader()
    assert f"4 lanes x {blocks} blocks" in caplog.text


def test_without_held_out_documents_there_is_no_validation(make_module: MakeModule) -> None:
    module = make_module(Written(10, validation_fraction=0))
    module.setup()
    assert module.n_validation_tokens == 0
    assert module.val_dataloader() == []


def test_held_out_text_shorter_than_one_block_is_validated_all_the_same(
    make_module: MakeModule,
) -> None:
    text = Written(30, validation_fraction=0.01)
    module = make_module(text, block_length=400, lanes=1, validation_vectors=10**6)
    module.setup()
    assert 0 < module.n_validation_tokens < 400
    batches = list(module.val_dataloader())
    assert sum(len(batch.layer) for batch in batches) == 2 * module.n_validation_tokens


def test_impossible_arguments_are_named_before_anything_is_read(make_module: MakeModule) -> None:
    with pytest.raises(InputError, match="max_vectors"):
        make_module(max_vectors=0)
    with pytest.raises(InputError, match="batch_size"):
        make_module(batch_size=0)
    with pytest.raises(InputError, match=r"hidden_states\.block_length=511"):
        make_module(block_length=511).prepare_data()


class Watch(pl.LightningModule):
    """Trains one number and remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.seen: list[HiddenStates] = []
        self.validated = 0

    def training_step(self, batch: HiddenStates, index: int) -> Tensor:
        self.seen.append(batch)
        return (self.scale * batch.vectors).square().mean()

    def validation_step(self, batch: HiddenStates, index: int) -> None:
        self.validated += len(batch.layer)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def trainer(folder: Path, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


@pytest.mark.parametrize("prefetch", [False, True])
def test_a_stopped_and_resumed_training_sees_every_batch_once(
    make_module: MakeModule, tmp_path: Path, prefetch: bool
) -> None:
    text = Written(30, validation_fraction=0.2)
    straight, first, second = Watch(), Watch(), Watch()
    modules = [make_module(text, max_vectors=320, prefetch=prefetch) for _ in range(3)]
    trainer(tmp_path, enable_checkpointing=False).fit(straight, datamodule=modules[0])
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=4, filename="at", save_top_k=-1)
    trainer(tmp_path, callbacks=[keep], max_steps=4).fit(first, datamodule=modules[1])
    trainer(tmp_path, enable_checkpointing=False).fit(
        second, datamodule=modules[2], ckpt_path=str(tmp_path / "at.ckpt")
    )
    assert len(straight.seen) == 10
    assert straight.validated > 0
    pieces = [*first.seen, *second.seen]
    assert len(first.seen) == 4
    for a, b in zip(straight.seen, pieces, strict=True):
        assert all(torch.equal(left, right) for left, right in zip(a, b, strict=True))
    assert not [t for t in threading.enumerate() if t.name.startswith("hidden_states")]


def test_a_run_that_goes_on_with_another_text_of_the_same_size_is_refused(
    make_module: MakeModule,
) -> None:
    one, same, other = make_module(Written(20)), make_module(Written(20)), make_module(Reversed(20))
    for module in (one, same, other):
        module.setup()
    assert one.state_dict()["training_vectors"] == other.state_dict()["training_vectors"]
    same.load_state_dict(one.state_dict())
    with pytest.raises(InputError, match="The run began with text="):
        other.load_state_dict(one.state_dict())
