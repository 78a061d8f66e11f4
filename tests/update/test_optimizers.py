"""Update rules: the released code's numbers, unit atoms, and state that survives."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dictlearn.codes import Codes
from dictlearn.dictionary import Dictionary
from dictlearn.inference import FistaSeed, Unrolled, training_loss
from dictlearn.prox import Prox, Soft, TopK
from dictlearn.update import (
    Adam,
    DictionaryOptimizer,
    HessianDiagonalRule,
    Mairal,
    Phased,
    Signum,
    UpdateRule,
)
from tests.inference.test_solvers import fista_of_the_paper

RULES = [
    Adam(lr=0.01),
    HessianDiagonalRule(),
    HessianDiagonalRule(mode="seed", lr=0.005, floor=0.001),
    Signum(lr=0.005),
    Phased(Adam(lr=0.01), HessianDiagonalRule()),
    Mairal(lr=0.5, window=20),
]


def rows(step: int, dtype: torch.dtype = torch.float64, n: int = 20, d: int = 8) -> Tensor:
    g = torch.Generator().manual_seed(step)
    mixed = (
        torch.randn(n, d, generator=g, dtype=torch.float64)
        @ torch.linspace(0.2, 1.5, d, dtype=torch.float64).diag()
    )
    return mixed.to(dtype)


def weights(step: int, dtype: torch.dtype, n: int = 20) -> Tensor:
    g = torch.Generator().manual_seed(1000 + step)
    counts = torch.randint(1, 500, (n,), generator=g)
    return counts.to(dtype).rsqrt()


def made(
    rule: UpdateRule, prox: Prox, **options: object
) -> tuple[Dictionary, Unrolled, DictionaryOptimizer]:
    dictionary = Dictionary(24, 8, **options).double()  # type: ignore[arg-type]
    encoder = Unrolled(2, "shared")
    encoder.build(dictionary, prox)
    optimizer = rule.build(list(dictionary.parameters()), list(encoder.parameters()))
    return dictionary, encoder, optimizer


def train(
    dictionary: Dictionary,
    encode: Callable[[Tensor], Codes],
    optimizer: DictionaryOptimizer,
    steps: range,
    prox: Prox,
) -> None:
    for step in steps:
        x = dictionary.centre(rows(step))
        codes = encode(x)
        optimizer.observe(codes.sum_over_rows(codes.values.detach().square()) / len(x))
        if optimizer.wants_codes:
            optimizer.observe_codes(x.detach(), codes.detach())
        optimizer.zero_grad()
        training_loss(x, dictionary.decode(codes), codes, prox).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def seed_training(
    basis: Tensor, data: list[Tensor], frequency_weights: list[Tensor | None], lambda_: float
) -> Tensor:
    """The seed's Algorithm 1, columns as data: basis [d, m]. 30 steps of FISTA, then the update."""
    step_size, lowest_activation, history = 0.005, 0.001, 300
    hessian = torch.zeros(basis.shape[1], dtype=basis.dtype)
    for x, w in zip(data, frequency_weights, strict=True):
        image = x.T
        ahat = fista_of_the_paper(image, basis, lambda_, 30)
        residual = image - basis @ ahat
        hessian = hessian * (history - 1) / history + ahat.square().mean(1) / history
        if w is not None:
            residual = residual * w
        d_basis = step_size * residual @ ahat.T / len(x)
        basis = basis + d_basis / (hessian + lowest_activation)
        basis = basis / basis.norm(dim=0)
    return basis


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-3)])
def test_seed_mode_is_the_released_code_for_a_hundred_updates(
    weighted: bool, dtype: torch.dtype, tolerance: float
) -> None:
    prox, steps = Soft(0.3), range(100)
    dictionary = Dictionary(24, 8, initialization="gaussian").to(dtype)
    start = dictionary.atoms.detach().clone()
    inference = FistaSeed(max_steps=30)
    rule = HessianDiagonalRule(mode="seed", lr=0.005, floor=0.001, window=300)
    optimizer = rule.build(list(dictionary.parameters()), [])
    data = [rows(step, dtype) for step in steps]
    each = [weights(step, dtype) if weighted else None for step in steps]
    for x, w in zip(data, each, strict=True):
        codes = inference(x, dictionary.atoms, prox).codes
        optimizer.observe(codes.sum_over_rows(codes.values.square()) / len(x))
        optimizer.zero_grad()
        training_loss(x, dictionary.decode(codes), codes, prox, w).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    expected = seed_training(start.T, data, each, 0.3).T
    assert (expected - start).norm(dim=1).mean() > 0.1  # the atoms have gone somewhere
    torch.testing.assert_close(dictionary.atoms.detach(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_corrected_mode_is_the_formula_at_any_age_and_scale(scale: float) -> None:
    dictionary = Dictionary(5, 4).double()
    rule = HessianDiagonalRule(lr=0.05, floor=0.02, window=10)
    optimizer = rule.build(list(dictionary.parameters()), [])
    g = torch.Generator().manual_seed(0)
    expected, energies = dictionary.atoms.detach().clone(), torch.zeros(5, dtype=torch.float64)
    total = 0.0
    for _ in range(4):
        energy = scale**2 * torch.rand(5, generator=g, dtype=torch.float64)
        gradient = scale**2 * torch.randn(5, 4, generator=g, dtype=torch.float64)
        energies, total = 0.9 * energies + 0.1 * energy, 0.9 * total + 0.1
        curvature = energies / total
        expected -= 0.05 * gradient / (curvature + 0.02 * curvature.mean())[:, None]
        expected /= expected.norm(dim=1, keepdim=True)
        optimizer.observe(energy)
        dictionary.atoms.grad = gradient
        optimizer.step()
    torch.testing.assert_close(dictionary.atoms.detach(), expected)


def test_atoms_that_nobody_used_stay_numbers() -> None:
    dictionary = Dictionary(5, 4)
    optimizer = HessianDiagonalRule().build(list(dictionary.parameters()), [])
    optimizer.observe(torch.zeros(5))
    dictionary.atoms.grad = torch.zeros(5, 4)
    before = dictionary.atoms.detach().clone()
    optimizer.step()
    torch.testing.assert_close(dictionary.atoms.detach(), before)


def test_energies_of_accumulated_batches_are_averaged() -> None:
    results = []
    for parts in ([[1.0, 3.0], [3.0, 5.0]], [[2.0, 4.0]]):
        dictionary = Dictionary(2, 4)
        optimizer = HessianDiagonalRule().build(list(dictionary.parameters()), [])
        for part in parts:
            optimizer.observe(torch.tensor(part))
        dictionary.atoms.grad = torch.ones(2, 4)
        optimizer.step()
        results.append(dictionary.atoms.detach())
    torch.testing.assert_close(*results)


def test_a_step_without_energies_is_refused() -> None:
    dictionary = Dictionary(2, 4)
    optimizer = HessianDiagonalRule().build(list(dictionary.parameters()), [])
    dictionary.atoms.grad = torch.ones(2, 4)
    with pytest.raises(RuntimeError, match="observe"):
        optimizer.step()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bias", [False, True])
def test_training_keeps_unit_atoms_moves_every_part_and_lowers_the_loss(
    rule: UpdateRule, bias: bool
) -> None:
    prox = TopK(3)
    dictionary, encoder, optimizer = made(rule, prox, bias=bias)
    before = [p.detach().clone() for p in (*dictionary.parameters(), *encoder.parameters())]

    def loss() -> float:
        x = dictionary.centre(rows(10_000, n=500))
        codes = encoder(x, dictionary.atoms, prox).codes
        return float(training_loss(x, dictionary.decode(codes), codes, prox).detach())

    first = loss()
    train(
        dictionary, lambda x: encoder(x, dictionary.atoms, prox).codes, optimizer, range(60), prox
    )
    torch.testing.assert_close(dictionary.atoms.norm(dim=1), torch.ones(24, dtype=torch.float64))
    after = [*dictionary.parameters(), *encoder.parameters()]
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert loss() < 0.9 * first


def test_sphere_adam_spends_no_moment_on_the_length_of_atoms() -> None:
    dictionary = Dictionary(6, 4).double()
    optimizer = Adam(lr=0.01).build(list(dictionary.parameters()), [])
    old = dictionary.atoms.detach().clone()
    gradient = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    dictionary.atoms.grad = gradient.clone()
    optimizer.step()
    moment = optimizer.state[dictionary.atoms]["exp_avg"]
    torch.testing.assert_close((moment * old).sum(1), torch.zeros(6, dtype=torch.float64))
    tangent = gradient - (gradient * old).sum(1, keepdim=True) * old
    torch.testing.assert_close(moment, 0.1 * tangent)
    expected = old - 0.01 * tangent / (tangent.abs() + 1e-8)
    expected /= expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(dictionary.atoms.detach(), expected)


def test_sphere_adam_does_not_move_along_a_radial_gradient() -> None:
    dictionary = Dictionary(6, 4).double()
    dictionary.renormalize_()
    optimizer = Adam(lr=0.01).build(list(dictionary.parameters()), [])
    old = dictionary.atoms.detach().clone()
    dictionary.atoms.grad = 3 * old
    optimizer.step()
    torch.testing.assert_close(dictionary.atoms.detach(), old)


@pytest.mark.parametrize("rule", RULES)
def test_a_run_goes_on_exactly_from_its_state_dict(rule: UpdateRule, tmp_path: Path) -> None:
    prox = TopK(3)
    dictionary, encoder, optimizer = made(rule, prox, bias=True)
    encode = lambda x: encoder(x, dictionary.atoms, prox).codes  # noqa: E731
    train(dictionary, encode, optimizer, range(5), prox)
    modules = nn.ModuleList([dictionary, encoder])
    torch.save(
        {"modules": modules.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "x"
    )
    train(dictionary, encode, optimizer, range(5, 10), prox)

    again, encoder_again, optimizer_again = made(rule, prox, bias=True)
    saved = torch.load(tmp_path / "x", weights_only=True)
    nn.ModuleList([again, encoder_again]).load_state_dict(saved["modules"])
    optimizer_again.load_state_dict(saved["optimizer"])
    train(
        again,
        lambda x: encoder_again(x, again.atoms, prox).codes,
        optimizer_again,
        range(5, 10),
        prox,
    )
    assert torch.equal(again.atoms, dictionary.atoms)
    for ours, theirs in zip(encoder.parameters(), encoder_again.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("rule", RULES[:-1])
def test_replaced_atoms_are_forgotten_and_the_others_are_not(rule: UpdateRule) -> None:
    prox = TopK(3)
    dictionary, encoder, optimizer = made(rule, prox)
    optimizer.reset_atoms(torch.tensor([1]))  # nothing to forget yet
    train(
        dictionary, lambda x: encoder(x, dictionary.atoms, prox).codes, optimizer, range(20), prox
    )
    gone, kept = torch.tensor([2, 5]), torch.tensor([i for i in range(24) if i not in (2, 5)])
    state = {
        id(p): {name: t.clone() for name, t in optimizer.state[p].items()}
        for p in (dictionary.atoms, *encoder.parameters())
    }
    optimizer.reset_atoms(gone)
    for parameter in (dictionary.atoms, *encoder.parameters()):
        for name, tensor in optimizer.state[parameter].items():
            before = state[id(parameter)][name]
            if tensor.ndim == 0:
                assert torch.equal(tensor, before)
                continue
            assert torch.equal(tensor[kept], before[kept])
            if name == "energy" and rule.mode == "corrected":  # type: ignore[attr-defined]
                torch.testing.assert_close(tensor[gone], before.mean().expand(2))
            else:
                assert not tensor[gone].any()
    assert state[id(encoder.thresholds[0])]["exp_avg"].any()


@pytest.mark.parametrize("rule", RULES)
def test_the_closure_is_called_once_and_its_loss_returned(rule: UpdateRule) -> None:
    prox, calls = TopK(3), []
    dictionary, encoder, optimizer = made(rule, prox)

    def closure() -> float:
        calls.append(1)
        codes = encoder(rows(0), dictionary.atoms, prox).codes
        optimizer.observe(codes.sum_over_rows(codes.values.detach().square()) / 20)
        optimizer.observe_codes(rows(0), codes.detach())
        training_loss(rows(0), dictionary.decode(codes), codes, prox).backward()  # type: ignore[no-untyped-call]
        return 1.5

    before = dictionary.atoms.detach().clone()
    assert optimizer.step(closure) == 1.5
    assert calls == [1]
    assert not torch.equal(before, dictionary.atoms)


def test_the_energies_of_merged_atoms_add_up() -> None:
    dictionary = Dictionary(4, 3)
    optimizer = HessianDiagonalRule().build([dictionary.atoms], [])
    optimizer.merge_atoms(torch.tensor([0]), torch.tensor([1]))  # nothing to merge yet
    optimizer.observe(torch.tensor([1.0, 2.0, 4.0, 8.0]))
    dictionary.atoms.grad = torch.ones(4, 3)
    optimizer.step()
    optimizer.merge_atoms(torch.tensor([0, 0]), torch.tensor([1, 3]))
    energy = optimizer.state[dictionary.atoms]["energy"]
    torch.testing.assert_close(energy * 300, torch.tensor([11.0, 2.0, 4.0, 8.0]))


def test_projecting_before_clipping_changes_no_step() -> None:
    results = []
    for early in (False, True):
        dictionary = Dictionary(6, 4).double()
        dictionary.renormalize_()
        optimizer = Adam(lr=0.01).build(list(dictionary.parameters()), [])
        g = torch.Generator().manual_seed(0)
        dictionary.atoms.grad = torch.randn(6, 4, dtype=torch.float64, generator=g)
        if early:
            optimizer.project_gradient()
            radial = (dictionary.atoms.grad * dictionary.atoms).sum(1)
            torch.testing.assert_close(radial, torch.zeros_like(radial))
        optimizer.step()
        results.append(dictionary.atoms.detach())
    torch.testing.assert_close(*results)


def test_only_a_corrected_curvature_counts_the_weights_of_rows() -> None:
    atoms = [Dictionary(4, 3).atoms]
    assert HessianDiagonalRule().build(atoms, []).weighs_energy
    assert not HessianDiagonalRule(mode="seed").build(atoms, []).weighs_energy
