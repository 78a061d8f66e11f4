"""A run that was stopped anywhere and gone on with ends bit by bit as one that never stopped."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from dictlearn.errors import InputError, Stopped
from dictlearn.hidden_states import HiddenStateDataModule
from dictlearn.inference import ExchangePursuit, TwoPhase, Unrolled, WorkingSet
from dictlearn.prox import BatchTopK, Jump, TopK
from dictlearn.storage.committed import committed
from dictlearn.transformer import FrozenTransformer
from dictlearn.update import (
    Adam,
    FirstAdam,
    HessianDiagonalRule,
    Mairal,
    Phased,
    Signum,
    ThenHessianDiagonal,
)
from tests.resume.interrupted import (
    Finish,
    Interrupt,
    assert_same_end,
    equal,
    go,
    history,
    kept,
)
from tests.small_run import BATCH, STEPS
from tests.watch import exact

MakeData = Callable[..., HiddenStateDataModule]


def phased() -> dict[str, Any]:
    inference = TwoPhase(
        Unrolled(1, "tied"), WorkingSet(), ExchangePursuit(), 0.25, 0.25, distil="none"
    )
    update = Phased(FirstAdam(warmup_vectors=0), ThenHessianDiagonal())
    return {"prox": BatchTopK(8), "inference": inference, "update": update}


SETTINGS: dict[str, Callable[[], dict[str, Any]]] = {
    "topk and adam": lambda: {"bias": True},
    "k drawn at every step": lambda: {"prox": TopK(8, sampled=[2, 16])},
    "the default recipe": phased,
    "the paper's": lambda: {**exact(), "update": HessianDiagonalRule()},
    "mairal": lambda: {**exact(), "update": Mairal()},
    "batch topk and signum": lambda: {"prox": BatchTopK(8), "update": Signum(warmup_vectors=0)},
    "jump with a target": lambda: {
        "prox": Jump(0.1, target_l0=8.0),
        "inference": Unrolled(1, "untied"),
    },
}


SLOW = ("k drawn at every step", "mairal", "the paper's")
BY_SPEED = [
    pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in SETTINGS
]


@pytest.mark.parametrize("setting", BY_SPEED)
def test_a_stopped_run_ends_bit_equal(setting: str, make_shared: MakeData, tmp_path: Path) -> None:
    """C4, C10 SIGTERM at any step, several times: the resumed run ends bit-identical."""
    parts = SETTINGS[setting]
    go(tmp_path / "straight", make_shared(), **parts())
    stops = [Interrupt(1), Interrupt(4, in_validation=True), Interrupt(5), Interrupt(10)]
    for stop in (*stops, Interrupt(STEPS, in_validation=True)):
        with pytest.raises(Stopped, match=f"SIGTERM after step {stop.step}"):
            go(tmp_path / "stopped", make_shared(), stop, **parts())
        newest = committed(tmp_path / "stopped" / "checkpoints")[0]
        assert newest.step == stop.step
    go(tmp_path / "stopped", make_shared(), **parts())
    assert_same_end(tmp_path / "straight", tmp_path / "stopped", equal)
    assert history(tmp_path / "straight") == history(tmp_path / "stopped")
    assert len(history(tmp_path / "straight")) == STEPS // 2 + STEPS // 4
    assert kept(tmp_path / "straight") == kept(tmp_path / "stopped")


class Killed(BaseException):
    """No chance to do anything more."""


class KilledAtTheEnd(pl.Callback):
    """Ends the program when training is done and the last validation has not begun."""

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        raise Killed


def test_a_run_killed_after_its_last_step_does_none_again(
    make_shared: MakeData, tmp_path: Path
) -> None:
    """C1 a run is killed before the validation that follows its last step: no step is lost."""
    go(tmp_path / "straight", make_shared(), every=5)
    with pytest.raises(Killed):
        go(tmp_path / "killed", make_shared(), others=(KilledAtTheEnd(),), every=5)
    assert committed(tmp_path / "killed" / "checkpoints")[0].step == STEPS
    go(tmp_path / "killed", make_shared(), others=(NoStep(),), every=5)
    assert_same_end(tmp_path / "straight", tmp_path / "killed", equal)
    assert history(tmp_path / "straight") == history(tmp_path / "killed")
    assert kept(tmp_path / "straight") == kept(tmp_path / "killed")


class NoStep(pl.Callback):
    """Refuses every step."""

    def on_train_batch_start(self, *args: Any) -> None:
        raise AssertionError("a step was done again")


@pytest.mark.parametrize(("setting", "rank"), [("topk and adam", 0), ("the default recipe", 1)])
def test_two_processes_stop_at_one_step_and_end_bit_equal(
    setting: str, rank: int, make_shared: MakeData, tmp_path: Path
) -> None:
    """C4 SIGTERM to either of two ranks: both save at one step, and the resumed run is the same."""
    parts = SETTINGS[setting]
    two: dict[str, Any] = {"processes": 2, "others": (Finish(),)}
    go(tmp_path / "straight", make_shared(2), **two, **parts())
    for stop in (Interrupt(5, rank=rank), Interrupt(STEPS, in_validation=True, rank=rank)):
        with pytest.raises(Exception, match="stopped by SIGTERM after step"):
            go(tmp_path / "stopped", make_shared(2), stop, **two, **parts())
        newest = committed(tmp_path / "stopped" / "checkpoints")[0]
        assert stop.step <= newest.step <= stop.step + 2
    go(tmp_path / "stopped", make_shared(2), **two, **parts())
    assert_same_end(tmp_path / "straight", tmp_path / "stopped", equal)
    assert history(tmp_path / "straight") == history(tmp_path / "stopped")
    assert kept(tmp_path / "straight") == kept(tmp_path / "stopped")


@pytest.mark.parametrize("rank", [0, 1])
def test_two_shards_stop_at_one_step_and_end_bit_equal(
    rank: int, make_shared: MakeData, tmp_path: Path
) -> None:
    """C4 SIGTERM to either of two shards: both save whole, and the resumed run is the same."""
    two: dict[str, Any] = {"processes": 2, "shards": 2, "others": (Finish(),)}
    go(tmp_path / "straight", make_shared(), **two, **sharded())
    with pytest.raises(Exception, match="stopped by SIGTERM after step"):
        go(tmp_path / "stopped", make_shared(), Interrupt(5, rank=rank), **two, **sharded())
    assert 5 <= committed(tmp_path / "stopped" / "checkpoints")[0].step <= 7
    go(tmp_path / "stopped", make_shared(), **two, **sharded())
    assert_same_end(tmp_path / "straight", tmp_path / "stopped", equal)
    assert history(tmp_path / "straight") == history(tmp_path / "stopped")


def test_a_run_of_two_shards_goes_on_in_one_process(make_shared: MakeData, tmp_path: Path) -> None:
    """C4 a checkpoint of two shards is that of one process: order and figures go on."""
    go(tmp_path / "straight", make_shared(), **sharded())
    stop = Interrupt(5, rank=1)
    with pytest.raises(Exception, match="stopped by SIGTERM after step"):
        go(tmp_path / "stopped", make_shared(), stop, processes=2, shards=2, **sharded())
    go(tmp_path / "stopped", make_shared(), **sharded())
    assert_same_end(tmp_path / "straight", tmp_path / "stopped", nearly)


def nearly(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and a.is_floating_point():
        return torch.allclose(a.float(), b.float(), rtol=1e-3, atol=1e-4)
    return isinstance(a, float) or equal(a, b)


def sharded() -> dict[str, Any]:
    inference = Unrolled(2, "tied", selection="exact")
    return {"inference": inference, "prox": TopK(8), "bias": True, "update": Adam(lr=0.002)}


class Spoilt(FrozenTransformer):
    """One token of a forward pass is not finite, and two are 300 times as long as all others."""

    def hidden_states(self, ids: Tensor, mask: Tensor, layers: Any) -> Tensor:
        found = super().hidden_states(ids, mask, layers).clone()
        found[1, 0, 1, 17] = math.nan
        found[1, 1:3, 2] *= 300
        return found


@pytest.mark.parametrize("processes", [1, 2])
def test_what_is_left_out_is_counted_on(
    processes: int, minilm_folder: Path, make_shared: MakeData, tmp_path: Path
) -> None:
    """B1, C4 tokens that are not finite or too long: a stopped run ends with the same counts."""
    spoilt = Spoilt(str(minilm_folder), dtype="float32")
    rest: dict[str, Any] = {"processes": processes, "others": (Finish(),) * (processes > 1)}

    def data() -> HiddenStateDataModule:
        made = make_shared(processes)
        made.transformer = spoilt
        return made

    go(tmp_path / "straight", data(), **rest)
    with pytest.raises(Exception, match="stopped by SIGTERM after step"):
        go(tmp_path / "stopped", data(), Interrupt(6), **rest)
    go(tmp_path / "stopped", data(), **rest)
    assert_same_end(tmp_path / "straight", tmp_path / "stopped", equal)
    end = torch.load(tmp_path / "stopped" / "checkpoints" / "last.ckpt", weights_only=True)
    out, seen = end["left_out"]
    assert seen == STEPS * BATCH
    assert out > STEPS
    (kept,) = (v for v in end.values() if isinstance(v, dict) and "non_finite" in v)
    assert len(kept["non_finite"]) > processes


class Seen(pl.Callback):
    """Keeps the batches of this process on disk, by step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        name = f"{trainer.global_step:03d}-{trainer.global_rank}.pt"
        torch.save(
            torch.cat([batch.vectors, batch.layer[:, None], batch.token[:, None]], 1),
            self.folder / name,
        )


def seen(folder: Path) -> list[Tensor]:
    """The global batches, step by step, rows in an order that no process decides."""
    batches = []
    for step in range(STEPS):
        parts = [torch.load(path) for path in sorted(folder.glob(f"{step:03d}-*.pt"))]
        batches.append(torch.unique(torch.cat(parts), dim=0))
    return batches


REVIVAL = True


def test_one_process_then_two_then_one(make_shared: MakeData, tmp_path: Path) -> None:
    """C9 1 -> 2 -> 1 ranks: the global batches are bit-equal, the end differs by rounding only."""
    folders = {name: tmp_path / name for name in ("straight", "changed", "seen-a", "seen-b")}
    for name in ("seen-a", "seen-b"):
        folders[name].mkdir()
    go(folders["straight"], make_shared(), others=(Seen(folders["seen-a"]),), revival=REVIVAL)
    watched = (Seen(folders["seen-b"]),)
    with pytest.raises(Stopped):
        go(folders["changed"], make_shared(), Interrupt(3), watched, revival=REVIVAL)
    with pytest.raises(Exception, match="stopped by SIGTERM"):
        go(folders["changed"], make_shared(2), Interrupt(6), watched, 2, revival=REVIVAL)
    go(folders["changed"], make_shared(), others=watched, revival=REVIVAL)
    for one, other in zip(seen(folders["seen-a"]), seen(folders["seen-b"]), strict=True):
        assert torch.equal(one, other)

    assert_same_end(folders["straight"], folders["changed"], nearly)


def test_another_order_of_the_data_is_refused(make_shared: MakeData, tmp_path: Path) -> None:
    """C9 other options change the order of the vectors: the run refuses to go on."""
    with pytest.raises(Stopped):
        go(tmp_path, make_shared(), Interrupt(2))
    with pytest.raises(InputError, match=r"began with 128 vectors a step.*batch_size=128"):
        go(tmp_path, make_shared(batch_size=64))
    with pytest.raises(InputError, match=r"hidden_states\.block_length=16 and now has 32"):
        go(tmp_path, make_shared(block_length=32))
    with pytest.raises(InputError, match=r"hidden_states\.cross_documents=False and now has True"):
        go(tmp_path, make_shared(cross_documents=True))
    with pytest.raises(InputError, match=r"The checkpoint has nothing for inference\.analysis"):
        go(tmp_path, make_shared(), inference=Unrolled(2, "untied"))
