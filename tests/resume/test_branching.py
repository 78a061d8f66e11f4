"""Dictionaries that begin as one: stopped at any step, also that of parting, they go on exactly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import pytorch_lightning as pl

from dictlearn.callbacks.checkpoints import RunCheckpoints
from dictlearn.errors import Stopped
from dictlearn.hidden_states import HiddenStateDataModule
from dictlearn.loggers.csv import CsvLogger
from dictlearn.resuming import checkpoint_to_go_on_from
from tests.resume.interrupted import Interrupt, assert_same_end, equal, finish, history
from tests.small_run import small_trainer
from tests.test_branching import COMMON, COUNTS, KINDS, Watch, ensemble_of, revivals


def go(
    folder: Path, kind: str, data: HiddenStateDataModule, *others: pl.Callback, at: float = 0.5
) -> None:
    found = checkpoint_to_go_on_from(folder, "auto")
    trainer = small_trainer(
        folder,
        [*revivals(), RunCheckpoints(folder, every_minutes=None), *others],
        enable_checkpointing=True,
        logger=CsvLogger(folder),
        limit_val_batches=1.0,
        val_check_interval=4,
        log_every_n_steps=2,
    )
    module = ensemble_of(data, kind, at)
    trainer.fit(module, datamodule=data, ckpt_path=None if found is None else found.path)
    finish(trainer)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_ends_bit_equal(
    kind: str, make_shared: Callable[..., HiddenStateDataModule], tmp_path: Path
) -> None:
    go(tmp_path / "straight", kind, make_shared())
    stops = [Interrupt(2), Interrupt(4, in_validation=True), Interrupt(COMMON)]
    for stop in (*stops, Interrupt(COMMON + 1)):
        with pytest.raises(Stopped, match=f"SIGTERM after step {stop.step}"):
            go(tmp_path / "stopped", kind, make_shared(), stop)
    go(tmp_path / "stopped", kind, make_shared())
    assert_same_end(tmp_path / "straight", tmp_path / "stopped", equal)
    assert history(tmp_path / "straight") == history(tmp_path / "stopped")


def test_those_that_have_parted_stay_apart_and_that_is_said(
    make_shared: Callable[..., HiddenStateDataModule],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(Stopped):
        go(tmp_path, "topk", make_shared(), Interrupt(2), at=0.0)
    watch = Watch()
    go(tmp_path, "topk", make_shared(), watch)
    assert all(set(COUNTS) == names for names in watch.validated)
    assert [entry for entry in caplog.messages if entry.startswith("branch_at=0.5 changes nothing")]
