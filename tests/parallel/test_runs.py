"""Whole runs with the atoms in parts: real processes learn what one process learns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from dictlearn.callbacks.gallery import FactorGallery
from dictlearn.callbacks.revival import DeadAtomRevival
from dictlearn.hidden_states import HiddenStateDataModule, HiddenStates
from dictlearn.inference import Fista, Iterative, Unrolled
from dictlearn.parallel import DictionaryParallel
from dictlearn.prox import BatchTopK, Jump, Soft
from dictlearn.update import Frozen, HessianDiagonalRule, Signum
from tests.small_run import BATCH, small_learner, small_trainer
from tests.watch import HELD_OUT_KEYS, exact, learned

MakeData = Callable[..., HiddenStateDataModule]
Ended = dict[str, Tensor]


class Report(pl.Callback):
    """Leaves on disk what process 0 ends with, joined from all shards, and checkpoints."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        learner = learned(pl_module)
        figures = {key: value.clone() for key, value in trainer.callback_metrics.items()}
        rank = trainer.global_rank
        atoms = learner.dictionary.atoms.detach().clone()
        torch.save({**figures, "part": atoms}, self.folder / f"rank-{rank}.pt")
        found = {**learner.state_dict(), **figures, "seen": torch.tensor(learner.vectors_seen)}
        if trainer.is_global_zero:
            torch.save(found, self.folder / "ended.pt")
        trainer.save_checkpoint(self.folder / "last.ckpt")

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step % 3 == 0:
            trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


def ended(
    data: HiddenStateDataModule,
    place: Path,
    *others: pl.Callback,
    shards: int = 1,
    copies: int = 1,
    start: Path | None = None,
    **parts: Any,
) -> Ended:
    """Train with so many shards and copies of them; return what the run ended with."""
    place.mkdir(exist_ok=True)
    chosen: dict[str, Any] = {"n_atoms": 128, "dead_after_vectors": 2 * BATCH, **parts}
    learner = small_learner(data, **chosen)
    strategy: Any = "auto" if copies == 1 else "ddp_fork"
    if shards > 1:
        strategy = DictionaryParallel(shards, start_method="fork")
    runner = small_trainer(
        place,
        [*others, Report(place)],
        devices=shards * copies,
        strategy=strategy,
        limit_val_batches=1.0,
        val_check_interval=4,
        precision="64-true",  # only hidden states are rounded, in ways that memory decides
    )
    runner.fit(learner, datamodule=data, ckpt_path=start)
    found: Ended = torch.load(place / "ended.pt", weights_only=True)
    return found


def close(found: Ended, expected: Ended, tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=tolerance, atol=tolerance, msg=key)


SETTINGS: dict[str, Callable[[], dict[str, Any]]] = {
    "topk": lambda: {"inference": exactly(2), "bias": True},
    "batch_topk": lambda: {"prox": BatchTopK(8), "inference": exactly(1, "shared")},
    "jump": lambda: {"prox": Jump(1.0, target_l0=8), "inference": exactly(2)},
    "soft": lambda: {"prox": Soft(0.1, target_l0=8), "inference": exactly(3, momentum=True)},
    "signum": lambda: {"update": Signum(lr=0.002, warmup_vectors=0), "inference": exactly(2)},
    "frozen": lambda: {"update": Frozen(0.002, warmup_vectors=0), "inference": exactly(2)},
    "the paper's": lambda: {**exact(), "update": HessianDiagonalRule()},
}


def exactly(*arguments: Any, **options: Any) -> Unrolled:
    return Unrolled(*arguments, **{"selection": "exact", **options})


NO_PAIR = {"batch_topk", "jump", "the paper's"}
SLOW = {"jump", "signum", "frozen"}


@pytest.mark.parametrize(
    "setting", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in SETTINGS]
)
def test_two_shards_learn_what_one_process_learns(
    setting: str, make_data: MakeData, tmp_path: Path
) -> None:
    data = make_data(steps=8)
    alone = ended(data, tmp_path / "one", **SETTINGS[setting]())
    two = ended(data, tmp_path / "two", shards=2, **SETTINGS[setting]())
    keys = HELD_OUT_KEYS - ({"amortisation_gap"} if setting in NO_PAIR else set())
    assert keys == {key.removeprefix("val/") for key in alone if key.startswith("val/")}
    close(two, alone, 1e-5)
    parts = [torch.load(tmp_path / "two" / f"rank-{rank}.pt")["part"] for rank in range(2)]
    assert torch.equal(torch.cat(parts), two["dictionary.atoms"])


def test_dead_and_double_atoms_are_replaced_as_in_one_process(
    make_data: MakeData, tmp_path: Path
) -> None:
    data = make_data(steps=8)

    def parts() -> dict[str, Any]:
        return {
            "prox": Soft(0.2),
            "inference": Iterative(Fista(), 1e-4),
            "update": HessianDiagonalRule(),
            "dead_after_vectors": BATCH,
        }

    runs = {}
    for name, shards in (("one", 1), ("two", 2)):
        revival = DeadAtomRevival(2 * BATCH, 0.9, duplicate_cosine=0.3)
        runs[name] = ended(data, tmp_path / name, revival, shards=shards, **parts())
        told = torch.load(tmp_path / name / "last.ckpt", weights_only=True)["callbacks"]
        counts = next(state for state in told.values() if "revived" in state)
        assert counts["revived"] > counts["merged"] > 0
        runs[name]["counts"] = torch.tensor([counts["revived"], counts["merged"]])
    close(runs["two"], runs["one"], 1e-5)


def test_the_page_of_factors_is_that_of_one_process(make_data: MakeData, tmp_path: Path) -> None:
    data, pages = make_data(steps=4), {}
    for name, shards in (("one", 1), ("two", 2)):
        gallery = FactorGallery(tmp_path / name)
        ended(data, tmp_path / name, gallery, shards=shards, inference=exactly(2))
        pages[name] = (tmp_path / name / "factors.html").read_text()
    assert "factor" in pages["one"]
    assert pages["two"] == pages["one"]


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_two_groups_of_two_shards_learn_what_two_processes_with_all_atoms_learn(
    setting: str, make_data: MakeData, tmp_path: Path
) -> None:
    halves = make_data(steps=16, batch_size=BATCH // 2)
    two = ended(halves, tmp_path / "two", copies=2, **SETTINGS[setting]())
    four = ended(halves, tmp_path / "four", shards=2, copies=2, **SETTINGS[setting]())
    close(four, two, 1e-5)


@pytest.mark.slow
def test_two_groups_of_two_shards_learn_what_one_process_learns(
    make_data: MakeData, tmp_path: Path
) -> None:
    alone = ended(make_data(steps=8), tmp_path / "one", **SETTINGS["topk"]())
    halves = make_data(steps=16, batch_size=BATCH // 2)
    four = ended(halves, tmp_path / "four", shards=2, copies=2, **SETTINGS["topk"]())
    learned = {key for key in alone if not key.startswith("train/")}
    close({key: four[key] for key in learned}, {key: alone[key] for key in learned}, 1e-4)


def test_a_checkpoint_of_two_shards_is_that_of_one_process(
    make_data: MakeData, tmp_path: Path
) -> None:
    data = make_data(steps=4)
    parts: dict[str, Any] = {"inference": exactly(2, "untied")}
    ended(data, tmp_path / "one", **parts)
    ended(data, tmp_path / "two", shards=2, **parts)
    one, two = (
        torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("one", "two")
    )
    assert one.keys() == two.keys()
    close(two["state_dict"], one["state_dict"], 1e-5)
    found, expected = two["optimizer_states"][0], one["optimizer_states"][0]
    assert found["param_groups"] == expected["param_groups"]
    assert found["state"].keys() == expected["state"].keys()
    for number, state in expected["state"].items():
        assert {name: value.dtype for name, value in state.items()} == {
            name: value.dtype for name, value in found["state"][number].items()
        }
        close(found["state"][number], state, 1e-5)


@pytest.mark.parametrize(
    "way", [(2, 1, 2), (1, 2, 1), pytest.param((2, 4, 1), marks=pytest.mark.slow)], ids=str
)
def test_a_run_goes_on_with_another_number_of_shards(
    way: tuple[int, ...], make_data: MakeData, tmp_path: Path
) -> None:
    parts: dict[str, Any] = {"inference": exactly(2, "shared"), "bias": True}
    whole = ended(make_data(steps=9), tmp_path / "whole", **parts)
    start = None
    for stop, shards in zip((3, 6, 9), way, strict=True):
        place = tmp_path / str(stop)
        found = ended(make_data(steps=9), place, shards=shards, start=start, **parts)
        start = place / f"{stop}.ckpt"
    close(found, whole, 1e-5)


class Seen(pl.Callback):
    """Leaves on disk the rows that every process trains on, and the lanes it made of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rows = folder, list[Tensor]()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: HiddenStates, index: int
    ) -> None:
        self.rows.append(torch.cat([batch.vectors.double(), batch.position[:, None]], 1))

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        torch.save(torch.stack(self.rows), self.folder / f"rows-{trainer.global_rank}.pt")


@pytest.mark.parametrize("lanes", [4, 1], ids=["split", "one lane, which both make"])
def test_shards_see_the_same_rows_in_the_same_order_as_one_process(
    lanes: int, make_data: MakeData, tmp_path: Path
) -> None:
    rows = {}
    for name, shards in (("one", 1), ("two", 2)):
        place = tmp_path / name
        data = make_data(steps=6, lanes=lanes)
        ended(data, place, Seen(place), shards=shards, inference=exactly(2))
        rows[name] = [
            torch.load(place / f"rows-{rank}.pt", weights_only=True) for rank in range(shards)
        ]
    assert torch.equal(rows["two"][0], rows["two"][1])
    torch.testing.assert_close(rows["two"][0], rows["one"][0], rtol=1e-5, atol=1e-5)
    assert len(rows["one"][0].flatten(0, 1).unique(dim=0)) > 5 * BATCH
