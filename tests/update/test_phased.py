"""Two rules in one run, and none at all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from dictlearn.configuration import build, config_dir
from dictlearn.dictionary import Dictionary
from dictlearn.errors import InputError
from dictlearn.inference import Unrolled
from dictlearn.prox import TopK
from dictlearn.update import (
    Adam,
    DictionaryOptimizer,
    Frozen,
    HessianDiagonal,
    HessianDiagonalRule,
    Phased,
    PhasedOptimizer,
    UpdateRule,
)

FIRST = Adam(lr=0.01, encoder_lr=0.02)
THEN = HessianDiagonalRule(lr=0.04, encoder_lr=0.005, window=10)


def made(rule: UpdateRule) -> tuple[nn.ModuleList, DictionaryOptimizer]:
    dictionary = Dictionary(6, 4, bias=True).double()
    encoder = Unrolled(2, "shared")
    encoder.build(dictionary, TopK(2))
    optimizer = rule.build(list(dictionary.parameters()), list(encoder.parameters()))
    return nn.ModuleList([dictionary, encoder]), optimizer


def walk(modules: nn.ModuleList, optimizer: DictionaryOptimizer, steps: range) -> None:
    """Steps along made-up gradients that depend on the step only."""
    for step in steps:
        g = torch.Generator().manual_seed(step)
        for parameter in modules.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=g, dtype=torch.float64)
        optimizer.observe(torch.rand(6, generator=g, dtype=torch.float64))
        optimizer.step()


def same(modules: nn.ModuleList, others: nn.ModuleList) -> bool:
    pairs = zip(modules.parameters(), others.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_while_codes_are_an_encoders_it_is_adam_bit_by_bit() -> None:
    ours, optimizer = made(Phased(FIRST, THEN))
    theirs, adam = made(FIRST)
    walk(ours, optimizer, range(5))
    walk(theirs, adam, range(5))
    assert same(ours, theirs)


def test_with_exact_codes_it_is_the_papers_rule_with_a_fresh_curvature() -> None:
    ours, optimizer = made(Phased(FIRST, THEN))
    walk(ours, optimizer, range(5))
    optimizer.set_exact(True)
    fresh, hessian = made(THEN)
    with torch.no_grad():
        fresh[0].atoms.copy_(ours[0].atoms)  # type: ignore[operator, arg-type]
    walk(ours, optimizer, range(5, 9))
    walk(fresh, hessian, range(5, 9))
    torch.testing.assert_close(ours[0].atoms, fresh[0].atoms)
    state = optimizer.state[optimizer.atoms]
    assert set(state) == {"step", "energy"}
    assert int(state["step"]) == 4


def test_encoder_and_bias_go_on_with_adam_at_the_second_rate() -> None:
    ours, optimizer = made(Phased(FIRST, THEN))
    theirs, adam = made(FIRST)
    walk(ours, optimizer, range(5))
    walk(theirs, adam, range(5))
    optimizer.set_exact(True)
    for group in adam.param_groups:
        group["lr"] = 0.005
    walk(ours, optimizer, range(5, 9))
    walk(theirs, adam, range(5, 9))
    assert not torch.equal(ours[0].atoms, theirs[0].atoms)  # type: ignore[arg-type]
    for a, b in zip(list(ours.parameters())[1:], list(theirs.parameters())[1:], strict=True):
        torch.testing.assert_close(a, b)


def test_a_schedule_scales_the_rates_of_both_phases() -> None:
    _, optimizer = made(Phased(FIRST, THEN))
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.01, 0.02]
    moved = []
    for factor in (1.0, 0.5):
        ours, optimizer = made(Phased(FIRST, THEN))
        before = ours[0].bias.detach().clone()  # type: ignore[operator]
        optimizer.set_exact(True)
        for group in optimizer.param_groups:
            group["lr"] *= factor
        walk(ours, optimizer, range(1))
        assert optimizer.param_groups[0]["lr"] == 0.01 * factor
        moved.append(ours[0].bias.detach() - before)  # type: ignore[operator]
    torch.testing.assert_close(moved[1], 0.5 * moved[0])


def test_telling_the_same_phase_again_forgets_nothing() -> None:
    ours, optimizer = made(Phased(FIRST, THEN))
    theirs, other = made(Phased(FIRST, THEN))
    for modules, each, again in ((ours, optimizer, True), (theirs, other, False)):
        for step in range(8):
            if again or step in (0, 4):
                each.set_exact(step >= 4)
            walk(modules, each, range(step, step + 1))
    assert same(ours, theirs)


def test_the_phase_goes_with_the_state_dict(tmp_path: Path) -> None:
    for switch in (2, 5, 100):  # before the state is saved, at it, and never
        ours, optimizer = made(Phased(FIRST, THEN))
        again, taken_up = made(Phased(FIRST, THEN))

        def go(modules: nn.ModuleList, each: DictionaryOptimizer, steps: range, at: int) -> None:
            for step in steps:
                each.set_exact(step >= at)
                walk(modules, each, range(step, step + 1))

        go(ours, optimizer, range(5), switch)
        torch.save([ours.state_dict(), optimizer.state_dict()], tmp_path / "state")
        go(ours, optimizer, range(5, 9), switch)
        weights, state = torch.load(tmp_path / "state", weights_only=True)
        again.load_state_dict(weights)
        taken_up.load_state_dict(state)
        assert isinstance(taken_up, PhasedOptimizer)
        assert taken_up.exact is (switch == 2)
        go(again, taken_up, range(5, 9), switch)
        assert same(ours, again)


def test_energies_seen_in_the_first_phase_do_not_pile_up() -> None:
    _, optimizer = made(Phased(FIRST, THEN))
    assert isinstance(optimizer, HessianDiagonal)
    for _ in range(3):
        optimizer.observe(torch.ones(6))
    assert not optimizer._observed


def test_a_frozen_dictionary_stays_bit_by_bit_while_the_encoder_learns() -> None:
    ours, optimizer = made(Frozen(encoder_lr=0.02))
    theirs, adam = made(FIRST)
    before = [parameter.detach().clone() for parameter in ours.parameters()]
    walk(ours, optimizer, range(4))
    walk(theirs, adam, range(4))
    after = list(ours.parameters())
    assert torch.equal(after[0], before[0])  # atoms
    assert torch.equal(after[1], before[1])  # bias
    assert after[0].grad is None
    for mine, adams in zip(after[2:], list(theirs.parameters())[2:], strict=True):
        assert torch.equal(mine, adams)
    optimizer.reset_atoms(torch.tensor([1]))


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("update.first.lr=0", "update.first.lr"),
        ("update.first.encoder_lr=-1", "update.first.encoder_lr"),
        ("update.first.warmup_vectors=-1", "update.first.warmup_vectors"),
        ("update.then.lr=0", "update.then.lr"),
        ("update.then.window=1", "update.then.window"),
        ("update.then.mode=sead", "update.then.mode"),
        ("update.then.decay_fraction=2", "update.then.decay_fraction"),
    ],
)
def test_a_wrong_value_of_a_nested_rule_is_told_by_its_own_key(override: str, key: str) -> None:
    with initialize_config_dir(config_dir(), version_base="1.3"):
        config = compose("train", overrides=["update=phased", override])
    with pytest.raises(InputError, match=re.escape(key)):
        build(config["update"])


def test_the_rate_that_is_told_is_that_of_the_rule_at_work() -> None:
    _, optimizer = made(Phased(FIRST, THEN))
    assert optimizer.rate == 0.01
    optimizer.param_groups[0]["lr"] *= 0.5  # as a schedule does
    assert optimizer.rate == 0.005
    optimizer.set_exact(True)
    assert optimizer.rate == pytest.approx(0.02)
    _, frozen = made(Frozen(encoder_lr=0.02))
    assert frozen.rate == 0.02
    _, adam = made(FIRST)
    assert adam.rate == 0.01
