"""Dictionaries that begin as one: the middle one learns for all, and at a share they part."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from dictlearn.callbacks.revival import DeadAtomRevival
from dictlearn.callbacks.variants import ForVariant
from dictlearn.dictionary import Dictionary
from dictlearn.ensemble import DictionaryEnsemble, Variant, learners
from dictlearn.errors import InputError
from dictlearn.hidden_states import HiddenStateDataModule
from dictlearn.inference import ExchangePursuit, TwoPhase, Unrolled, WorkingSet
from dictlearn.learner import DictionaryLearner
from dictlearn.prox import BatchTopK, Jump, Soft, TopK
from dictlearn.update import (
    Adam,
    FirstAdam,
    HessianDiagonalRule,
    Mairal,
    Phased,
    ThenHessianDiagonal,
)
from tests.small_run import BATCH, STEPS, small_trainer

COMMON = 6
COUNTS = {"k4": 4, "k8": 8, "k24": 24}
KINDS = ("topk", "two_phase")
OTHERS = ("jump", "seed_rule", "mairal")


def parts(kind: str, k: int) -> dict[str, Any]:
    if kind == "topk":
        return {"prox": TopK(k), "inference": Unrolled(), "update": Adam(warmup_vectors=0)}
    if kind == "jump":
        one = Unrolled(1, "untied")
        return {"prox": Jump(0.1, target_l0=float(k)), "inference": one, "update": Adam()}
    if kind == "steered":
        return {"prox": Soft(0.1, target_l0=float(k)), "inference": WorkingSet(), "update": Adam()}
    if kind in ("seed_rule", "mairal"):
        rule = Mairal() if kind == "mairal" else HessianDiagonalRule(mode="seed", floor=0.01)
        return {"prox": Soft(k / 100), "inference": WorkingSet(), "update": rule}
    encoder = Unrolled(1, "tied")
    inference = TwoPhase(encoder, WorkingSet(), ExchangePursuit(), 0.25, 0.25, distil="none")
    update = Phased(FirstAdam(warmup_vectors=0), ThenHessianDiagonal())
    return {"prox": BatchTopK(k), "inference": inference, "update": update}


def learner_of(cls: type[Any], kind: str, k: int, data: HiddenStateDataModule) -> Any:
    dictionary = Dictionary(
        width=data.hidden_size,
        n_atoms=160,
        initialization="gaussian",
        dead_after_vectors=2 * BATCH,
        seed=3,
    )
    return cls(dictionary, **parts(kind, k), max_vectors=data.max_vectors, seed=3)


def ensemble_of(data: HiddenStateDataModule, kind: str, at: float = 0.5) -> DictionaryEnsemble:
    made = {name: learner_of(Variant, kind, k, data) for name, k in COUNTS.items()}
    return DictionaryEnsemble(made, branch_at=at)


def revivals() -> list[pl.Callback]:
    return [ForVariant(name, DeadAtomRevival(2 * BATCH, 0.9, seed=3)) for name in COUNTS]


class Watch(pl.Callback):
    """Keeps the state of every learner after every step, and what was validated."""

    def __init__(self) -> None:
        self.steps: list[dict[str, dict[str, torch.Tensor]]] = []
        self.validated: list[set[str]] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        state = {name: one.state_dict() for name, one in learners(pl_module).items()}
        self.steps.append(
            {name: {key: v.clone() for key, v in one.items()} for name, one in state.items()}
        )

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *args: Any
    ) -> None:
        self.validated.append(set(outputs))


def fit(
    folder: Path, module: pl.LightningModule, data: HiddenStateDataModule, *hung: pl.Callback
) -> None:
    trainer = small_trainer(
        folder, hung, limit_val_batches=1.0, val_check_interval=3, gradient_clip_val=0.01
    )
    trainer.fit(module, datamodule=data)


@pytest.fixture(scope="module", params=KINDS)
def joint(
    request: pytest.FixtureRequest,
    make_shared: Callable[..., HiddenStateDataModule],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, DictionaryEnsemble, Watch]:
    watch, data = Watch(), make_shared()
    module = ensemble_of(data, request.param)
    fit(tmp_path_factory.mktemp("joint"), module, data, watch, *revivals())
    return request.param, module, watch


def test_the_middle_one_is_bit_by_bit_the_run_of_its_own(
    joint: tuple[str, DictionaryEnsemble, Watch],
    make_shared: Callable[..., HiddenStateDataModule],
    tmp_path: Path,
) -> None:
    kind, ensemble, _ = joint
    data = make_shared()
    alone = learner_of(DictionaryLearner, kind, COUNTS["k8"], data)
    fit(tmp_path, alone, data, DeadAtomRevival(2 * BATCH, 0.9, seed=3))
    found = ensemble.parts["k8"]
    for key, value in alone.state_dict().items():
        assert torch.equal(value, found.state_dict()[key]), key
    assert found.held_out_figures == alone.held_out_figures


@pytest.mark.parametrize("name", ["k4", "k24"])
def test_the_others_go_on_from_it(name: str, joint: tuple[str, DictionaryEnsemble, Watch]) -> None:
    _, ensemble, watch = joint
    key = "dictionary.atoms"
    first, last = watch.steps[0], watch.steps[-1]
    for step in watch.steps[:COMMON]:
        assert torch.equal(step[name][key], first[name][key])
    parted, own = watch.steps[COMMON - 1]["k8"][key], watch.steps[COMMON][name][key]
    a_step = (watch.steps[COMMON]["k8"][key] - parted).norm()
    assert 0 < (own - parted).norm() < 5 * a_step < (first[name][key] - parted).norm()
    assert not torch.equal(own, watch.steps[COMMON]["k8"][key])
    part, middle = ensemble.parts[name], ensemble.parts["k8"]
    assert part.vectors_seen == middle.vectors_seen == STEPS * BATCH
    assert (
        part.optimizer.state_dict()["param_groups"] == middle.optimizer.state_dict()["param_groups"]
    )
    assert not torch.equal(last[name][key], own)
    assert part.held_out_figures["val/fvu"] != middle.held_out_figures["val/fvu"]


def test_each_has_its_own_number_of_codes_in_the_end(
    joint: tuple[str, DictionaryEnsemble, Watch],
) -> None:
    for name, k in COUNTS.items():
        found = joint[1].parts[name].held_out_figures["val/l0"]
        assert found == pytest.approx(k, rel=0.3), name


def test_only_those_that_learn_are_validated(joint: tuple[str, DictionaryEnsemble, Watch]) -> None:
    _, ensemble, watch = joint
    names = [set(found) for found in watch.validated]
    before = names.index(set(COUNTS))
    assert names[:before] == [{"k8"}] * before
    assert names[before:] == [set(COUNTS)] * (len(names) - before)
    assert before == len(names) // 2
    assert learners(ensemble, acting=True) == learners(ensemble) == ensemble.parts


@pytest.mark.parametrize("kind", OTHERS)
def test_the_first_step_of_its_own_is_no_larger_than_those_before(
    kind: str, make_shared: Callable[..., HiddenStateDataModule], tmp_path: Path
) -> None:
    """What a rule has averaged over many steps is not lost: one batch would throw atoms about."""
    watch, data = Watch(), make_shared()
    ensemble = ensemble_of(data, kind)
    fit(tmp_path, ensemble, data, watch)
    key = "dictionary.atoms"
    steps = [found["k8"][key] for found in watch.steps[: COMMON + 1]]
    moved = [(after - before).norm() for before, after in itertools.pairwise(steps)]
    for name in ("k4", "k24"):
        own = (watch.steps[COMMON][name][key] - steps[COMMON - 1]).norm()
        assert 0 < own < 2 * max(moved[-3:]), (name, own, moved)


def test_thresholds_are_fitted_anew_to_another_number_of_codes(
    make_shared: Callable[..., HiddenStateDataModule], tmp_path: Path
) -> None:
    watch, data = Watch(), make_shared()
    fit(tmp_path, ensemble_of(data, "jump"), data, watch)
    key = "inference.jumps.scales"
    few, middle, many = (float(watch.steps[COMMON][name][key]) for name in COUNTS)
    assert many < middle < few
    assert float(watch.steps[COMMON - 1]["k8"][key]) == middle


def test_a_steered_price_begins_near_its_own_target(
    make_shared: Callable[..., HiddenStateDataModule], tmp_path: Path
) -> None:
    watch, data = Watch(), make_shared()
    fit(tmp_path, ensemble_of(data, "steered"), data, watch)
    key = "price.lambda_"
    common = float(watch.steps[COMMON - 1]["k8"][key])
    for name, k in COUNTS.items():
        own = float(watch.steps[COMMON][name][key])  # moved by a step since
        assert own / common == pytest.approx((8 / k) ** 0.5, rel=0.12), name


@pytest.mark.parametrize(("common", "l0"), [(COMMON, 2 * COUNTS["k4"]), (10, COUNTS["k4"])])
def test_a_price_is_found_anew(
    common: int, l0: int, make_shared: Callable[..., HiddenStateDataModule], tmp_path: Path
) -> None:
    """The codes of its first own step, l1 codes or those to use, are as many as it asks for."""
    data, counted = make_shared(), []
    ensemble = ensemble_of(data, "two_phase", at=common / STEPS)
    inference = ensemble.parts["k4"].inference
    observe = inference.observe

    def counting(l0: torch.Tensor) -> None:
        counted.append(float(l0))
        observe(l0)

    inference.observe = counting  # type: ignore[method-assign]
    fit(tmp_path, ensemble, data)
    assert len(counted) == STEPS - common
    assert counted[0] == pytest.approx(l0, rel=0.15)


class Keep(pl.Callback):
    """Leaves the learners on the disk, by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.folder.mkdir(exist_ok=True)
        for name, learner in learners(pl_module).items():
            seen = {"seen": torch.tensor(learner.vectors_seen)}
            torch.save({**learner.state_dict(), **seen}, self.folder / f"{name}.pt")


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_part_at_the_same_step_as_one(
    kind: str, make_shared: Callable[..., HiddenStateDataModule], tmp_path: Path
) -> None:
    for processes, strategy in ((1, "auto"), (2, "ddp_fork")):
        data = make_shared(processes)
        hung = [*revivals(), Keep(tmp_path / str(processes))]
        trainer = small_trainer(tmp_path, hung, devices=processes, strategy=strategy)
        trainer.fit(ensemble_of(data, kind, at=0.55), datamodule=data)
    for name in COUNTS:
        one, two = (torch.load(tmp_path / number / f"{name}.pt") for number in "12")
        assert one.keys() == two.keys()
        assert int(two["seen"]) == STEPS * BATCH
        for key in one:
            found, expected = two[key].double(), one[key].double()
            if not torch.equal(found, expected):  # as an unknown cut is, which is infinite
                assert (found - expected).norm() < 1e-2 * expected.norm(), key


def test_a_share_that_leaves_less_than_a_step_leaves_one(
    make_shared: Callable[..., HiddenStateDataModule], tmp_path: Path
) -> None:
    data = make_shared()
    ensemble = ensemble_of(data, "topk", at=0.999)
    watch = Watch()
    fit(tmp_path, ensemble, data, watch)
    key = "dictionary.atoms"
    assert ensemble.apart
    assert torch.equal(watch.steps[-2]["k4"][key], watch.steps[0]["k4"][key])
    assert not torch.equal(watch.steps[-1]["k4"][key], watch.steps[0]["k4"][key])


def test_encoders_of_several_kinds_cannot_begin_as_one(
    make_shared: Callable[..., HiddenStateDataModule],
) -> None:
    data = make_shared()
    sampled = learner_of(Variant, "topk", 4, data)
    sampled = Variant(
        sampled.dictionary,
        TopK(8, sampled=(4, 16)),
        Unrolled(),
        Adam(),
        max_vectors=data.max_vectors,
    )
    made = {"k4": learner_of(Variant, "topk", 4, data), "sampled": sampled}
    with pytest.raises(InputError, match=r"branch_at=0\.5: what k4 and sampled learn is not"):
        DictionaryEnsemble(made, branch_at=0.5)
    DictionaryEnsemble(made)
