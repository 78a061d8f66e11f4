"""One step reads like Algorithm 1 of the paper, and a run of steps learns."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor

from dictlearn.hidden_states import HiddenStateDataModule, HiddenStates
from dictlearn.inference import Fista, Inference, Iterative, Solution, Unrolled, duality_gap
from dictlearn.learner import DictionaryLearner
from dictlearn.prox import Prox, Soft, TopK
from dictlearn.update import Adam, HessianDiagonalRule, UpdateRule
from tests.small_run import BATCH, LAYERS, small_learner, small_trainer
from tests.watch import HELD_OUT_KEYS, direction, exact, run

MakeData = Callable[..., HiddenStateDataModule]


def test_with_exact_codes_the_gradient_of_the_atoms_is_that_of_the_paper_and_there_is_no_other(
    make_data: MakeData, tmp_path: Path
) -> None:
    _, steps = run(make_data(steps=2), tmp_path, **exact())
    for step in steps:
        assert set(step.gradients) == {"dictionary.atoms"}
        assert not step.solution.codes.values.requires_grad
        expected = direction(step, torch.ones(BATCH))
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(
            step.gradients["dictionary.atoms"], expected, rtol=1e-4, atol=1e-7
        )


def test_what_is_coded_are_the_normalised_vectors_of_both_layers(
    make_data: MakeData, tmp_path: Path
) -> None:
    data = make_data(steps=1)
    _, (step,) = run(data, tmp_path, **exact())
    for row, layer in enumerate(LAYERS):
        of_layer = step.batch.layer == layer
        assert of_layer.sum() > 10
        centred = step.batch.vectors[of_layer] - data.statistics.mean[row]
        torch.testing.assert_close(step.x[of_layer], centred / data.statistics.scale[row])


def test_weights_of_tokens_enter_the_gradient(make_data: MakeData, tmp_path: Path) -> None:
    data = make_data(steps=1, token_weight_exponent=0.5, normalize_weights=False)
    _, (step,) = run(data, tmp_path, **exact())
    weight = step.batch.weight
    assert weight.max() > 5 * weight.min()
    gradient = step.gradients["dictionary.atoms"]
    torch.testing.assert_close(gradient, direction(step, weight), rtol=1e-4, atol=1e-7)
    unweighted = direction(step, torch.ones(BATCH))
    assert (gradient - unweighted).norm() > 0.1 * unweighted.norm()


def test_a_bias_is_learned_from_the_residual_alone(make_data: MakeData, tmp_path: Path) -> None:
    _, (step,) = run(make_data(steps=1), tmp_path, bias=True, **exact())
    codes = step.solution.codes.detach().dense()
    expected = -(step.x - codes @ step.atoms).mean(0)
    assert set(step.gradients) == {"dictionary.atoms", "dictionary.bias"}
    torch.testing.assert_close(step.gradients["dictionary.bias"], expected, rtol=1e-4, atol=1e-7)


def test_the_papers_rule_takes_codes_as_constants_while_the_encoder_learns(
    make_data: MakeData, tmp_path: Path
) -> None:
    _, (step,) = run(make_data(steps=1), tmp_path, update=HessianDiagonalRule())
    expected = direction(step, torch.ones(BATCH))
    gradient = step.gradients["dictionary.atoms"]
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-7)
    for name in ("inference.log_steps.0", "inference.thresholds.1"):
        assert step.gradients[name].abs().sum() > 0, name


def test_with_adam_tied_atoms_also_learn_from_being_the_encoder(
    make_data: MakeData, tmp_path: Path
) -> None:
    _, (step,) = run(make_data(steps=1), tmp_path)
    expected = direction(step, torch.ones(BATCH))
    gradient = step.gradients["dictionary.atoms"]
    assert (gradient - expected).norm() > 0.01 * expected.norm()


def test_the_curvature_of_the_papers_rule_is_the_mean_squared_code(
    make_data: MakeData, tmp_path: Path
) -> None:
    _, steps = run(make_data(steps=3), tmp_path, update=HessianDiagonalRule(window=4), **exact())
    average = torch.zeros_like(steps[0].atoms[:, 0])
    for step in steps:
        codes = step.solution.codes.detach().dense()
        average = 0.75 * average + 0.25 * codes.square().mean(0)
        assert step.energy is not None
        torch.testing.assert_close(step.energy, average)
    assert average.max() > 0


RULES: dict[str, UpdateRule] = {
    "adam": Adam(warmup_vectors=0),
    "hessian_diagonal": HessianDiagonalRule(),
    "hessian_diagonal_seed": HessianDiagonalRule(mode="seed", lr=0.005, floor=0.001),
}
CODERS: dict[str, Callable[[], tuple[Prox, Inference]]] = {
    "unrolled": lambda: (TopK(4), Unrolled()),
    "fista": lambda: (Soft(0.05), Iterative(Fista())),
}


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("rule", RULES)
def test_atoms_move_and_stay_on_the_sphere(
    rule: str, coder: str, make_data: MakeData, tmp_path: Path
) -> None:
    prox, inference = CODERS[coder]()
    _, steps = run(make_data(steps=4), tmp_path, prox=prox, inference=inference, update=RULES[rule])
    assert len(steps) == 4
    for step in steps:
        torch.testing.assert_close(step.after.norm(dim=1), torch.ones(64), rtol=0, atol=1e-5)
        assert (step.after - step.atoms).norm() > 1e-4
        codes = step.solution.codes.detach()
        assert (codes.dense() >= 0).all()
        if coder == "unrolled":
            assert codes.l0().max() <= 4
            assert codes.l0().float().mean() > 2


@pytest.mark.parametrize("coder", CODERS)
def test_a_tiny_run_explains_clearly_more_at_its_end(
    coder: str, make_data: MakeData, tmp_path: Path
) -> None:
    prox, inference = CODERS[coder]()
    _, steps = run(make_data(steps=40), tmp_path, prox=prox, inference=inference)
    fvu = [step.fvu for step in steps]
    assert sum(fvu[-3:]) < 0.8 * sum(fvu[:3]), fvu


def test_the_logged_fvu_is_that_of_the_raw_vectors_about_the_means_of_their_layers(
    make_data: MakeData, tmp_path: Path
) -> None:
    data = make_data(steps=2)
    _, steps = run(data, tmp_path)
    mean, scale = data.statistics.mean, data.statistics.scale
    for step in steps:
        row = (step.batch.layer == LAYERS[1]).long()
        decoded = step.solution.codes.detach().dense() @ step.atoms
        raw = decoded * scale[row][:, None] + mean[row]
        error = (raw - step.batch.vectors).square().sum()
        spread = (step.batch.vectors - mean[row]).square().sum()
        assert step.fvu == pytest.approx(float(error / spread), rel=1e-4)


def test_an_atom_idles_for_as_many_vectors_as_it_does_not_fire_on(
    make_data: MakeData, tmp_path: Path
) -> None:
    parts = {"prox": TopK(2), "n_atoms": 512, "dead_after_vectors": 3 * BATCH}
    learner, steps = run(make_data(steps=6), tmp_path, **parts)
    idle = torch.zeros(512, dtype=torch.int64)
    for step in steps:
        fired = (step.solution.codes.detach().dense() > 0).any(0)
        idle = torch.where(fired, 0, idle + BATCH)
        assert torch.equal(step.idle, idle)
    assert 0 in idle
    assert 6 * BATCH in idle
    assert torch.equal(learner.is_dead(), idle >= 3 * BATCH)
    assert learner.vectors_seen == 6 * BATCH


TRAINING_KEYS = {"loss", "fvu", "l0", "dead_fraction", "lr", "vectors"}


def test_training_figures_are_logged_every_few_steps_and_held_out_ones_at_validation(
    make_data: MakeData, tmp_path: Path
) -> None:
    data, logger = make_data(steps=12), CSVLogger(tmp_path)
    learner = small_learner(data, update=Adam(lr=0.01, warmup_vectors=0), dead_after_vectors=1)
    trainer = small_trainer(
        tmp_path, logger=logger, log_every_n_steps=4, limit_val_batches=1.0, val_check_interval=6
    )
    trainer.fit(learner, datamodule=data)
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    training = {row["step"]: row for row in rows if "train/fvu" in row}
    held_out = {row["step"]: row for row in rows if "val/fvu" in row}
    assert list(training) == [3, 7, 11]
    assert list(held_out) == [5, 11]
    for step, row in training.items():
        assert {f"train/{key}" for key in TRAINING_KEYS} <= set(row)
        assert row["train/vectors"] == (step + 1) * BATCH
        assert 0 < row["train/l0"] <= 8
        assert 0 <= row["train/dead_fraction"] < 1
    for row in held_out.values():
        assert {key for key in row if key.startswith("val/")} == {f"val/{k}" for k in HELD_OUT_KEYS}
    assert training[3]["train/lr"] == pytest.approx(0.01)
    assert 0 < training[11]["train/lr"] < 0.005


class Counted(NamedTuple):
    """Sums over held-out vectors, made with nothing but the batches and the codes."""

    fvu: float
    fvu_of_layer: list[float]
    l0: float
    cosine: float
    objective: float
    firing: Tensor


def coded(learner: DictionaryLearner, x: Tensor) -> Tensor:
    solution: Solution = learner.inference(x, learner.dictionary.atoms, learner.prox)
    return solution.codes.dense()


@torch.no_grad()
def by_hand(learner: DictionaryLearner, data: HiddenStateDataModule) -> Counted:
    batches = list(data.val_dataloader())
    vectors = torch.cat([batch.vectors for batch in batches]).double()
    row = (torch.cat([batch.layer for batch in batches]) == LAYERS[1]).long()
    mean, scale = data.statistics.mean.double(), data.statistics.scale.double()
    x = (vectors - mean[row]) / scale[row][:, None]
    atoms = learner.dictionary.atoms.double()
    learner.eval()
    parts = torch.split(x.float(), 100)
    codes = torch.cat([coded(learner, part) for part in parts]).double()
    decoded = codes @ atoms
    raw = decoded * scale[row][:, None] + mean[row]
    error = (vectors - raw).square().sum(1)
    spread = torch.empty_like(error)
    for layer in range(2):
        of_layer = row == layer
        centre = vectors[of_layer].mean(0)
        spread[of_layer] = (vectors[of_layer] - centre).square().sum(1)
    shares = [float(error[row == k].sum() / spread[row == k].sum()) for k in range(2)]
    cosine = torch.cosine_similarity(vectors, raw, dim=1)
    value = 0.5 * (x - decoded).square().sum(1) + learner.prox.lambda_ * codes.sum(1)
    return Counted(
        float(error.sum() / spread.sum()),
        shares,
        float((codes > 0).sum(1).double().mean()),
        float(cosine.mean()),
        float(value.mean()),
        (codes > 0).double().mean(0),
    )


@pytest.mark.parametrize("coder", CODERS)
def test_held_out_figures_are_those_of_a_plain_computation(
    coder: str, make_data: MakeData, tmp_path: Path
) -> None:
    prox, inference = CODERS[coder]()
    data = make_data(steps=4)
    learner = small_learner(data, prox=prox, inference=inference, n_atoms=256)
    trainer = small_trainer(tmp_path, limit_val_batches=1.0)
    trainer.fit(learner, datamodule=data)
    atoms = learner.dictionary.atoms.detach().clone()
    (figures,) = trainer.validate(learner, datamodule=data, verbose=False)
    assert torch.equal(atoms, learner.dictionary.atoms)
    expected = by_hand(learner, data)
    assert figures["val/fvu"] == pytest.approx(expected.fvu, rel=1e-4)
    assert figures["val/fvu_layer_0"] == pytest.approx(expected.fvu_of_layer[0], rel=1e-4)
    assert figures["val/fvu_layer_3"] == pytest.approx(expected.fvu_of_layer[1], rel=1e-4)
    assert figures["val/l0"] == pytest.approx(expected.l0, rel=1e-3)
    assert figures["val/cosine"] == pytest.approx(expected.cosine, rel=1e-4)
    assert figures["val/objective"] == pytest.approx(expected.objective, rel=1e-4)
    assert figures["val/dead_fraction"] == pytest.approx(
        float((expected.firing == 0).double().mean())
    )
    torch.testing.assert_close(
        learner.validation_firing_frequency.double(), expected.firing, rtol=0, atol=2e-3
    )


@pytest.mark.parametrize("coder", CODERS)
def test_the_gap_is_that_of_all_codes_or_of_some_where_it_would_cost_extra(
    coder: str, make_data: MakeData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dictlearn.hidden_states.module.SOME", 100)
    prox, inference = CODERS[coder]()
    data = make_data(steps=4)
    learner = small_learner(data, prox=prox, inference=inference, n_atoms=256)
    trainer = small_trainer(tmp_path, limit_val_batches=1.0)
    trainer.fit(learner, datamodule=data)
    for _ in range(2):  # nothing is left over from the validation before
        (figures,) = trainer.validate(learner, datamodule=data, verbose=False)
        gaps, asked = [], 0
        for batch in data.val_dataloader():
            some = data.some_held_out(batch) if coder == "unrolled" else batch.layer >= 0
            rows = HiddenStates(*(column[some] for column in batch))
            prices = learner.sparsity(rows.layer)
            with torch.no_grad():
                x, solution = learner.infer(rows)
                atoms = learner.dictionary.atoms
                gaps.append(duality_gap(x, solution.codes, atoms, prices))
            asked += len(batch.layer)
        gap = torch.cat(gaps)
        assert len(gap) == asked if coder == "fista" else 50 < len(gap) < asked / 2
        assert figures["val/duality_gap"] == pytest.approx(float(gap.double().mean()), rel=1e-3)


def test_the_first_atoms_come_from_the_config_or_from_the_data(
    make_data: MakeData, tmp_path: Path
) -> None:
    data = make_data(steps=1)
    _, (drawn,) = run(data, tmp_path)
    _, (taken,) = run(data, tmp_path, initialization="data")
    sample = data.sample(256)
    x = torch.nn.functional.normalize(data.normalization(sample.vectors, sample.layer), dim=1)
    nearest = (taken.atoms @ x.T).amax(1)
    torch.testing.assert_close(nearest, torch.ones(64), rtol=0, atol=1e-5)
    assert (drawn.atoms @ x.T).amax() < 0.9
