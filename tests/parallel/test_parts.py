"""What a part of a dictionary is made of, how it moves, and what cannot be in parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from dictlearn.codes import Codes
from dictlearn.errors import InputError
from dictlearn.inference import Unrolled, WorkingSet
from dictlearn.inference.merging import top_of_rows
from dictlearn.losses import Objective
from dictlearn.mesh import Mesh, Processes, whole_codes
from dictlearn.parallel import DictionaryParallel
from dictlearn.prox import BatchTopK, Power, Soft, TopK, Weighted
from dictlearn.sharding import (
    average_gradients,
    check_shards,
    clip_by_norm,
    parts_and_others,
    share_out_learned,
)
from dictlearn.update import Adam, HessianDiagonalRule, Mairal, Signum, UpdateRule
from dictlearn.update.guard import StepGuard
from tests.parallel.processes import on_processes
from tests.parallel.small import Learned, M, N


def refused(name: str) -> tuple[Learned, str]:
    parts: dict[str, Any] = {"inference": Unrolled(), "prox": TopK(4), "update": Adam()}
    table: dict[str, tuple[dict[str, Any], str]] = {
        "inference": ({"inference": WorkingSet(), "prox": Soft(0.1)}, "choose inference=unrolled"),
        "candidates": ({"inference": Unrolled(n_candidates=8)}, "inference.n_candidates=null"),
        "refit": ({"inference": Unrolled(refit=True)}, "inference.refit=false"),
        "power": ({"prox": Power(0.1)}, "choose topk"),
        "weighted": ({"prox": Weighted(0.1, [1.0] * M)}, "choose topk"),
        "mairal": ({"update": Mairal()}, "choose update=adam"),
    }
    changed, told = table[name]
    return Learned(loss=Objective(), **(parts | changed)), told


@pytest.mark.parametrize(
    "name", ["inference", "candidates", "refit", "power", "weighted", "mairal"]
)
def test_what_cannot_be_shared_out_is_refused_in_one_sentence(name: str) -> None:
    learned, told = refused(name)
    with pytest.raises(InputError, match=told) as error:
        check_shards(learned, 2)
    assert "\n" not in str(error.value)


def test_atoms_that_cannot_be_shared_out_evenly_are_refused() -> None:
    learned = Learned(Unrolled(), TopK(4), Objective(), Adam())
    with pytest.raises(InputError, match=r"dictionary.n_atoms=48 .* 5 processes .*n_atoms=50"):
        check_shards(learned, 5)


RULES: dict[str, UpdateRule] = {
    "adam": Adam(lr=0.01),
    "signum": Signum(lr=0.01),
    "hessian_diagonal": HessianDiagonalRule(),
    "hessian_diagonal, seed": HessianDiagonalRule(mode="seed"),
}


@pytest.mark.parametrize("name", RULES)
def test_every_rule_moves_a_part_as_it_moves_the_whole(name: str, tmp_path: Path) -> None:
    rule = RULES[name]

    def moved(learned: Learned, shards: Processes) -> dict[str, Tensor]:
        dictionary, inference = learned.dictionary, learned.inference
        optimizer = rule.build(list(dictionary.parameters()), list(inference.parameters()))
        optimizer.shards = shards
        for step in range(4):
            view = learned.view()
            torch.autograd.backward(learned.loss(view))
            codes = view.solution.codes.detach()
            optimizer.observe(codes.sum_over_rows(codes.values.square()) / N)
            optimizer.step()
            if step == 1:
                places = torch.tensor([5, 30])
                optimizer.merge_atoms(torch.tensor([7, 40]), places)
                optimizer.reset_atoms(shards.own(places, M)[1])
        named = (*dictionary.named_parameters(), *inference.named_parameters())
        return {key: entry.detach() for key, entry in named}

    def made() -> Learned:
        return Learned(Unrolled(2, selection="exact"), TopK(4), Objective(), rule)

    def task(mesh: Mesh) -> dict[str, Tensor]:
        learned = made()
        share_out_learned(learned, mesh)
        return moved(learned, mesh.dictionary)

    alone = moved(made(), Processes())
    for rank, part in enumerate(on_processes(2, tmp_path, task)):
        for key, value in alone.items():
            own = value.ndim > 0 and len(value) == M
            expected = value[Processes(rank, 2).place(M)] if own else value
            torch.testing.assert_close(part[key], expected, rtol=1e-7, atol=1e-9)


def test_the_gradient_is_clipped_by_the_norm_of_the_whole(tmp_path: Path) -> None:
    def clipped(learned: Learned) -> dict[str, Tensor]:
        torch.autograd.backward(learned.loss(learned.view()))
        clip_by_norm(learned.dictionary, learned.inference, 0.01)
        named = (*learned.dictionary.named_parameters(), *learned.inference.named_parameters())
        return {key: entry.grad for key, entry in named if entry.grad is not None}

    def made() -> Learned:
        return Learned(Unrolled(2, selection="exact"), TopK(4), Objective(), Adam())

    def task(mesh: Mesh) -> dict[str, Tensor]:
        learned = made()
        share_out_learned(learned, mesh)
        return clipped(learned)

    whole = made()
    torch.autograd.backward(whole.loss(whole.view()))
    parts, others = parts_and_others(whole.dictionary, whole.inference)
    torch.nn.utils.clip_grad_norm_([*parts, *others], 0.01)
    named = (*whole.dictionary.named_parameters(), *whole.inference.named_parameters())
    expected = {key: entry.grad for key, entry in named if entry.grad is not None}
    for rank, part in enumerate(on_processes(2, tmp_path, task)):
        for key, value in expected.items():
            own = value.ndim > 0 and len(value) == M
            torch.testing.assert_close(
                part[key], value[Processes(rank, 2).place(M)] if own else value
            )


def test_a_norm_below_zero_turns_no_gradient_round() -> None:
    learned = Learned(Unrolled(2, selection="exact"), TopK(4), Objective(), Adam())
    torch.autograd.backward(learned.loss(learned.view()))
    before = learned.dictionary.atoms.grad
    assert before is not None
    before = before.clone()
    clip_by_norm(learned.dictionary, learned.inference, -1.0)
    assert learned.dictionary.atoms.grad is not None
    assert torch.equal(learned.dictionary.atoms.grad, before)


def test_codes_of_all_shards_become_codes_over_all_atoms(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    dense = torch.rand(N, M, generator=generator) * (torch.rand(N, M, generator=generator) < 0.1)

    def task(mesh: Mesh) -> dict[str, Tensor]:
        mine = dense[:, mesh.dictionary.place(M)]
        width = 6 + mesh.dictionary.rank
        kept = mine.topk(width, dim=1)
        sparse = whole_codes(Codes(*kept, mine.shape[1]), mesh.dictionary)
        assert sparse.indices is not None
        return {
            "from dense": whole_codes(Codes.from_dense(mine), mesh.dictionary).dense(),
            "from sparse": sparse.dense(),
            "distinct": torch.tensor([len(set(row.tolist())) for row in sparse.indices]),
            "atoms": torch.tensor(sparse.n_atoms),
        }

    assert (dense != 0).view(N, 2, -1).sum(2).max() <= 6
    for found in on_processes(2, tmp_path, task):
        assert torch.equal(found["from dense"], dense)
        assert torch.equal(found["from sparse"], dense)
        assert found["distinct"].tolist() == [14] * N
        assert int(found["atoms"]) == M


def test_of_equal_codes_those_of_the_first_shards_are_kept(tmp_path: Path) -> None:
    def task(mesh: Mesh) -> Tensor:
        codes = Codes(torch.ones(3, 2), torch.tensor([[0, 1]] * 3), 2)
        return top_of_rows(codes, 3, mesh.dictionary).dense()

    first, second = on_processes(2, tmp_path, task)
    assert first.tolist() == [[1.0, 1.0]] * 3
    assert sorted(second.sum(1).tolist()) == [1.0] * 3


def test_gradients_are_means_over_rows_and_every_shard_keeps_its_own(tmp_path: Path) -> None:
    def task(mesh: Mesh) -> dict[str, Tensor]:
        learned = Learned(Unrolled(2, "shared"), TopK(4), Objective(), Adam())
        share_out_learned(learned, mesh)
        dictionary, inference = learned.dictionary, learned.inference
        parts, others = parts_and_others(dictionary, inference)
        for entry in parts:
            entry.grad = torch.full_like(entry, 10 * mesh.dictionary.rank + mesh.data.rank)
        for entry in others:
            entry.grad = torch.full_like(entry, mesh.data.rank)
        average_gradients(dictionary, inference, mesh)
        named = (*dictionary.named_parameters(), *inference.named_parameters())
        return {key: entry.grad for key, entry in named if entry.grad is not None}

    for rank, found in enumerate(on_processes(2, tmp_path, task, copies=2)):
        for name, gradient in found.items():
            alike = name == "bias" or gradient.ndim == 0
            expected = 0.5 if alike else 10 * (rank % 2) + 0.5
            assert torch.equal(gradient, torch.full_like(gradient, expected)), name
        assert {"atoms", "bias", "analysis.0", "thresholds.0", "log_steps.1"} <= found.keys()


def test_the_first_process_has_the_whole_state_and_any_takes_its_part(tmp_path: Path) -> None:
    def made() -> Learned:
        return Learned(Unrolled(2, "shared"), BatchTopK(4), Objective(), Adam())

    whole = made().state_dict()

    def task(mesh: Mesh) -> dict[str, Tensor]:
        learned = made()
        share_out_learned(learned, mesh)
        joined = learned.state_dict()
        learned.dictionary.atoms.data.zero_()
        learned.idle.zero_()
        learned.load_state_dict(whole)
        again = {key: entry.detach().clone() for key, entry in learned.named_parameters()}
        return {**joined, **{f"part of {key}": entry for key, entry in again.items()}}

    for rank, found in enumerate(on_processes(2, tmp_path, task, copies=2)):
        for key, value in whole.items():
            own = value.ndim > 0 and len(value) == M
            part = value[Processes(rank % 2, 2).place(M)] if own else value
            assert torch.equal(found[key], part if rank > 0 else value), key
            if f"part of {key}" in found:
                assert torch.equal(found[f"part of {key}"], part)


def test_a_gradient_that_is_not_finite_in_one_part_stops_the_step_of_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """B2 a gradient is not finite in a part of the dictionary: all skip the step and name it."""

    def task(mesh: Mesh) -> tuple[bool, list[str]]:
        caplog.clear()
        guard, parts = (
            StepGuard(),
            nn.ParameterDict({"bias": torch.ones(4), "atoms": torch.ones(4)}),
        )
        guard.know(parts)
        for entry in parts.values():
            entry.grad = torch.ones(4)
        if mesh.dictionary.rank == 1:
            parts["atoms"].grad[2] = torch.nan
        return guard.allows(parts.values(), mesh.dictionary), caplog.messages

    told = (False, ["At step 0 the gradient of atoms is not finite: skipped."])
    assert on_processes(2, tmp_path, task) == [told, told]


def test_processes_that_the_size_does_not_divide_are_refused() -> None:
    def made(size: int | None, devices: int) -> DictionaryParallel:
        strategy = DictionaryParallel(size, start_method="fork")
        pl.Trainer(accelerator="cpu", devices=devices, strategy=strategy, logger=False)
        return strategy

    assert made(2, 4).n_shards == 2
    assert made(None, 4).n_shards == 4
    with pytest.raises(InputError, match=r"dictionary_parallel_size=3 must divide the 4 processes"):
        _ = made(3, 4).n_shards
    with pytest.raises(InputError, match=r"trainer.strategy.dictionary_parallel_size=0"):
        made(0, 2)
