"""A dead atom takes the place of what the dictionary reconstructs worst."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from dictlearn.callbacks.revival import DeadAtomRevival, sample_by_error
from dictlearn.errors import InputError
from dictlearn.hidden_states import HiddenStateDataModule, HiddenStates
from dictlearn.inference import Unrolled
from dictlearn.learner import DictionaryLearner
from dictlearn.seeding import generator
from dictlearn.update import Frozen, HessianDiagonalRule
from tests.small_run import BATCH, small_learner, small_trainer
from tests.test_learner_runs import ended
from tests.watch import learned

DEAD = [5, 40]
MakeData = Callable[..., HiddenStateDataModule]


class Planted(pl.Callback):
    """Lets some atoms pass for dead after every step, before the revival looks."""

    def __init__(self, dead: list[int]) -> None:
        self.dead = dead
        self.residual = torch.empty(0)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: HiddenStates,
        batch_idx: int,
    ) -> None:
        learner = learned(pl_module)
        learner.idle[self.dead] = learner.dictionary.dead_after_vectors
        x, solution = learner.infer(batch)
        self.residual = (x - learner.dictionary.decode(solution.codes)).detach()
        self.atoms = learner.dictionary.atoms.detach().clone()


class Seen(NamedTuple):
    """Which atoms the revival changed after a step, and what they became."""

    step: int
    changed: list[int]
    atoms: Tensor


class Look(pl.Callback):
    """Compares the atoms before and after the revival."""

    def __init__(self, planted: Planted) -> None:
        self.planted = planted
        self.seen: list[Seen] = []

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: HiddenStates,
        batch_idx: int,
    ) -> None:
        atoms = learned(pl_module).dictionary.atoms.detach().clone()
        changed = (atoms != self.planted.atoms).any(1).nonzero().flatten().tolist()
        self.seen.append(Seen(batch_idx, changed, atoms[changed]))


def run(
    data: HiddenStateDataModule,
    place: Path,
    revival: DeadAtomRevival,
    dead: list[int] = DEAD,
    **parts: Any,
) -> tuple[DictionaryLearner, Look, pl.Trainer]:
    planted = Planted(dead)
    look = Look(planted)
    learner = small_learner(data, dead_after_vectors=10**6, **parts)
    trainer = small_trainer(place, [planted, revival, look])
    trainer.fit(learner, datamodule=data)
    return learner, look, trainer


@pytest.fixture(scope="module")
def revived(
    make_data: MakeData, tmp_path_factory: pytest.TempPathFactory
) -> tuple[DictionaryLearner, Look, pl.Trainer]:
    """Three steps, and two atoms replaced after the last one."""
    place = tmp_path_factory.mktemp("revived")
    inference = Unrolled(weights="untied")
    return run(make_data(steps=3), place, DeadAtomRevival(3 * BATCH, 1.0), inference=inference)


Revived = tuple[DictionaryLearner, Look, pl.Trainer]


def test_a_dead_atom_becomes_the_normalised_residual_of_a_badly_reconstructed_vector(
    revived: Revived,
) -> None:
    _, look, _ = revived
    assert [seen.changed for seen in look.seen] == [[], [], DEAD]
    residual = look.planted.residual
    directions = torch.nn.functional.normalize(residual, dim=1)
    cosine = look.seen[-1].atoms @ directions.T
    torch.testing.assert_close(cosine.amax(1), torch.ones(2), rtol=0, atol=1e-5)
    first, second = cosine.argmax(1).tolist()
    assert first != second
    error = residual.square().sum(1)
    assert error[[first, second]].mean() > error.quantile(0.1)
    expected = sample_by_error(residual.square().sum(-1), 2, generator(0, "revival", 3))
    assert [first, second] == expected.tolist()


def test_a_revived_atom_starts_anew(revived: Revived) -> None:
    learner, _, trainer = revived
    alive = [index for index in range(64) if index not in DEAD]
    assert learner.idle[DEAD].tolist() == [0, 0]
    inference = learner.inference
    assert isinstance(inference, Unrolled)
    atoms = learner.dictionary.atoms
    for matrix in inference.analysis:
        assert torch.equal(matrix[DEAD], atoms[DEAD])
        assert not torch.equal(matrix[alive], atoms[alive])
    for threshold in inference.thresholds:
        assert torch.equal(threshold[DEAD], torch.zeros(2))
        assert threshold[alive].abs().sum() > 0
    state = trainer.optimizers[0].state
    for parameter in (atoms, *inference.analysis, *inference.thresholds):
        for name in ("exp_avg", "exp_avg_sq"):
            moment = state[parameter][name]
            assert moment[DEAD].abs().sum() == 0
            assert moment[alive].abs().sum() > 0


def test_the_energy_of_a_revived_atom_starts_at_the_mean_of_the_papers_rule(
    make_data: MakeData, tmp_path: Path
) -> None:
    rule = HessianDiagonalRule()
    revival = DeadAtomRevival(3 * BATCH, 1.0)
    learner, _, trainer = run(make_data(steps=3), tmp_path, revival, update=rule)
    energy = trainer.optimizers[0].state[learner.dictionary.atoms]["energy"]
    assert energy[5] == energy[40]
    assert energy.min() < energy[5] < energy.max()


def test_none_is_revived_after_its_share_of_the_run(make_data: MakeData, tmp_path: Path) -> None:
    revival = DeadAtomRevival(BATCH, until_fraction=0.5)
    _, look, _ = run(make_data(steps=6), tmp_path, revival)
    assert [seen.step for seen in look.seen if seen.changed] == [0, 1, 2]
    assert revival.revived == 3 * len(DEAD)


def test_it_looks_only_where_enough_vectors_have_passed(
    make_data: MakeData, tmp_path: Path
) -> None:
    revival = DeadAtomRevival(int(2.5 * BATCH), until_fraction=1.0)
    _, look, _ = run(make_data(steps=8), tmp_path, revival)
    assert [seen.step for seen in look.seen if seen.changed] == [2, 4, 7]


def test_nothing_happens_when_nothing_is_dead(make_data: MakeData, tmp_path: Path) -> None:
    revival = DeadAtomRevival(BATCH, until_fraction=1.0)
    _, look, _ = run(make_data(steps=3), tmp_path, revival, dead=[])
    assert [seen.changed for seen in look.seen] == [[], [], []]
    assert revival.revived == 0
    assert revival.state_dict() == {"revived": 0, "merged": 0}


def test_the_draw_depends_on_the_seed_and_the_step_only(
    make_data: MakeData, tmp_path: Path
) -> None:
    found = []
    for seed, noise in ((1, 10), (1, 11), (2, 10)):
        torch.manual_seed(noise)
        _, look, _ = run(make_data(steps=1), tmp_path, DeadAtomRevival(BATCH, 1.0, seed))
        found.append(look.seen[0].atoms)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    residual = look.planted.residual
    draws = [
        sample_by_error(residual.square().sum(-1), 4, generator(1, "revival", step))
        for step in (3, 3, 4)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_more_dead_atoms_than_rows_are_revived_as_far_as_the_rows_go(
    make_data: MakeData, tmp_path: Path
) -> None:
    dead = list(range(60))
    revival = DeadAtomRevival(32, 1.0)
    learner, look, _ = run(make_data(steps=1, batch_size=32), tmp_path, revival, dead=dead)
    assert look.seen[0].changed == list(range(32))
    assert revival.revived == 32
    torch.testing.assert_close(learner.dictionary.atoms.norm(dim=1), torch.ones(64))


def test_the_count_goes_with_a_checkpoint() -> None:
    revival, other = DeadAtomRevival(1, 1.0), DeadAtomRevival(1, 1.0)
    revival.revived = 7
    other.load_state_dict(revival.state_dict())
    assert other.revived == 7
    other.load_state_dict({"revived": 9})  # of a checkpoint from before double atoms were counted
    assert (other.revived, other.merged) == (9, 0)


@pytest.mark.parametrize(
    ("every", "until", "key"),
    [(0, 0.5, "every_vectors"), (1.5, 0.5, "every_vectors"), (9, 1.5, "until_fraction")],
)
def test_a_wrong_option_is_told_under_its_key(every: float, until: float, key: str) -> None:
    with pytest.raises(InputError, match=rf"callbacks\.revival\.{key}"):
        DeadAtomRevival(every, until)  # type: ignore[arg-type]


def test_a_wrong_cosine_is_told_under_its_key() -> None:
    with pytest.raises(InputError, match=r"callbacks\.revival\.duplicate_cosine=2"):
        DeadAtomRevival(9, 0.5, duplicate_cosine=2)


class Doubled(pl.Callback):
    """Makes atom 9 almost atom 4 after every step, before the revival looks."""

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: HiddenStates,
        batch_idx: int,
    ) -> None:
        learner = learned(pl_module)
        atoms = learner.dictionary.atoms.data
        atoms[9] = torch.nn.functional.normalize(atoms[4] + 0.01 * atoms[9], dim=0)
        self.atoms = atoms.clone()
        energy = trainer.optimizers[0].state[learner.dictionary.atoms]["energy"]
        self.energies = energy[4] + energy[9]
        _, solution = learner.infer(batch, learner.sparsity(batch.layer))
        self.strength = solution.codes.sum_over_rows(solution.codes.values.square())


def doubled(data: HiddenStateDataModule, place: Path, cosine: float | None) -> tuple[Any, ...]:
    double, revival = Doubled(), DeadAtomRevival(2 * BATCH, 1.0, duplicate_cosine=cosine)
    learner = small_learner(data, dead_after_vectors=10**6, update=HessianDiagonalRule())
    trainer = small_trainer(place, [double, revival])
    trainer.fit(learner, datamodule=data)
    energy = trainer.optimizers[0].state[learner.dictionary.atoms]["energy"]
    changed = (learner.dictionary.atoms.detach() != double.atoms).any(1).nonzero().flatten()
    return learner, double, revival, energy, changed.tolist()


def test_the_rarer_of_two_double_atoms_is_replaced_and_the_other_takes_its_energy_over(
    make_data: MakeData, tmp_path: Path
) -> None:
    learner, double, revival, energy, changed = doubled(make_data(steps=2), tmp_path, 0.95)
    rare, common = (9, 4) if double.strength[9] < double.strength[4] else (4, 9)
    assert double.strength[4] != double.strength[9]
    assert changed == [4, 9]
    weights = double.strength[[4, 9], None]
    mean = torch.nn.functional.normalize((weights * double.atoms[[4, 9]]).sum(0), dim=0)
    torch.testing.assert_close(learner.dictionary.atoms[common].detach(), mean)
    assert float(learner.dictionary.atoms[rare].detach() @ double.atoms[common]) < 0.95
    torch.testing.assert_close(energy[common], double.energies)
    torch.testing.assert_close(learner.dictionary.atoms.detach().norm(dim=1), torch.ones(64))
    assert revival.state_dict() == {"revived": 1, "merged": 1}


def test_double_atoms_stay_where_nobody_asked(make_data: MakeData, tmp_path: Path) -> None:
    *_, revival, _, changed = doubled(make_data(steps=2), tmp_path, None)
    assert changed == []
    assert revival.merged == 0


def rows_of_error(*errors: float) -> Tensor:
    """Rows `[n, 3]` with these squared norms."""
    directions = torch.nn.functional.normalize(torch.randn(len(errors), 3), dim=1)
    return directions * torch.tensor(errors).sqrt()[:, None]


def test_rows_are_drawn_in_proportion_to_their_squared_error_and_never_without_one() -> None:
    draws, counts = generator(0, "statistics"), torch.zeros(5)
    residual = rows_of_error(0.0, 1.0, 3.0, 0.0, 6.0)
    for _ in range(4000):
        counts[sample_by_error(residual.square().sum(-1), 1, draws)] += 1
    assert counts[0] == counts[3] == 0
    # Standard errors of the shares are at most 0.008.
    torch.testing.assert_close(
        counts / 4000, torch.tensor([0, 0.1, 0.3, 0, 0.6]), rtol=0, atol=0.03
    )


def test_drawn_rows_are_distinct_and_no_more_than_have_an_error() -> None:
    residual = rows_of_error(0.0, 1e-12, 3.0, 0.0, 1e6)
    for step in range(20):
        found = sample_by_error(residual.square().sum(-1), 4, generator(0, step))
        assert sorted(found.tolist()) == [1, 2, 4]
    assert found.dtype == torch.int64
    assert len(sample_by_error(residual.square().sum(-1), 2, generator(0))) == 2
    assert len(sample_by_error(rows_of_error(0.0, 0.0).square().sum(-1), 2, generator(0))) == 0


def test_double_atoms_are_replaced_alike_on_two_processes(
    make_data: MakeData, tmp_path: Path
) -> None:
    found = []
    for cosine in (0.2, None):
        revival = DeadAtomRevival(2 * BATCH, 0.9, duplicate_cosine=cosine)
        data = make_data(steps=8, batch_size=BATCH // 2)
        parts = {"update": HessianDiagonalRule(), "inference": Unrolled(weights="shared")}
        found.append(ended(data, tmp_path, 2, revival, **parts))
    (first, second), (plain, _) = found
    for key in first:
        if not key.startswith("train/"):
            assert torch.equal(first[key], second[key]), key
    assert not torch.equal(first["dictionary.atoms"], plain["dictionary.atoms"])


def test_a_frozen_dictionary_keeps_its_dead_and_double_atoms(
    make_data: MakeData, tmp_path: Path
) -> None:
    revival = DeadAtomRevival(BATCH, 1.0, duplicate_cosine=0.05)
    learner, look, _ = run(make_data(steps=3), tmp_path, revival, update=Frozen(warmup_vectors=0))
    assert learner.is_dead()[DEAD].all()
    assert [seen.changed for seen in look.seen] == [[], [], []]
    assert revival.revived == revival.merged == 0
