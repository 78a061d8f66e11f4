"""Adam in blocks: torch's numbers, a short first moment, and no more memory than that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dictlearn.dictionary import Dictionary
from dictlearn.update import Adam, HessianDiagonalRule, Signum, UpdateRule, moments


def gradients(step: int, like: Tensor) -> Tensor:
    g = torch.Generator().manual_seed(step)
    return torch.randn(like.shape, generator=g, dtype=torch.float64).to(like.dtype)


def walk(
    rule: UpdateRule, dtype: torch.dtype, steps: int = 20
) -> tuple[Dictionary, torch.nn.Parameter, torch.optim.Optimizer]:
    dictionary = Dictionary(300, 16, seed=1).to(dtype)
    encoder = torch.nn.Parameter(dictionary.atoms.detach().clone())
    optimizer = rule.build([dictionary.atoms], [encoder])
    for step in range(steps):
        dictionary.atoms.grad = gradients(step, encoder)
        encoder.grad = gradients(100 + step, encoder)
        optimizer.observe(torch.ones(300, dtype=dtype))
        optimizer.step()
    return dictionary, encoder, optimizer


@pytest.mark.parametrize("numbers", [2**17, 1000])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-3)])
def test_it_is_torchs_adam_whatever_the_blocks(
    numbers: int, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moments, "CACHED", numbers)
    _, encoder, _ = walk(Adam(lr=0.01), dtype)
    start = Dictionary(300, 16, seed=1).to(dtype).atoms.detach().clone()
    expected = torch.nn.Parameter(start.clone())
    adam = torch.optim.Adam([expected], lr=0.01)
    for step in range(20):
        expected.grad = gradients(100 + step, expected)
        adam.step()
    moved = (expected - start).abs().mean()
    assert moved > 0.01
    assert (encoder - expected).abs().max() < tolerance
    assert (encoder - expected).abs().mean() < 0.01 * moved


def test_atoms_are_the_same_in_blocks_and_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    for rule in (Adam(lr=0.01), Signum(lr=0.01)):
        whole, _, _ = walk(rule, torch.float64)
        with monkeypatch.context() as patched:
            patched.setattr(moments, "CACHED", 1000)
            parts, _, _ = walk(rule, torch.float64)
        torch.testing.assert_close(whole.atoms, parts.atoms)


def test_only_the_first_moment_of_float32_matrices_is_short(tmp_path: Path) -> None:
    dictionary, encoder, optimizer = walk(Adam(lr=0.01), torch.float32)
    for parameter in (dictionary.atoms, encoder):
        state = optimizer.state[parameter]
        assert state["exp_avg"].dtype == torch.bfloat16
        assert state["exp_avg_sq"].dtype == torch.float32
    _, encoder, optimizer = walk(Adam(lr=0.01), torch.float64)
    assert optimizer.state[encoder]["exp_avg"].dtype == torch.float64


def test_a_loaded_state_is_short_again_and_goes_on_bit_by_bit(tmp_path: Path) -> None:
    dictionary, encoder, optimizer = walk(Adam(lr=0.01), torch.float32)
    torch.save(optimizer.state_dict(), tmp_path / "state")
    again = Dictionary(300, 16)
    with torch.no_grad():
        again.atoms.copy_(dictionary.atoms)
    encoder_again = torch.nn.Parameter(encoder.detach().clone())
    taken_up = Adam(lr=0.01).build([again.atoms], [encoder_again])
    taken_up.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    for step in (50, 51):
        for parameter in (dictionary.atoms, encoder, again.atoms, encoder_again):
            parameter.grad = gradients(step, parameter)
        optimizer.step()
        taken_up.step()
    assert torch.equal(again.atoms, dictionary.atoms)
    assert torch.equal(encoder_again, encoder)
    assert taken_up.state[again.atoms]["exp_avg"].dtype == torch.bfloat16


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes how many bytes the largest tensor made meanwhile has."""

    bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        before = {t.untyped_storage().data_ptr() for t in _tensors(args)}
        for tensor in _tensors([made]):
            if tensor.untyped_storage().data_ptr() not in before:
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return made


def _tensors(values: object) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, list | tuple):
        return [tensor for value in values for tensor in _tensors(value)]
    return []


@pytest.mark.parametrize("rule", [Adam(lr=0.01), Signum(lr=0.01), HessianDiagonalRule()])
def test_a_step_makes_nothing_as_large_as_the_dictionary(
    rule: UpdateRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moments, "CACHED", 1000)
    dictionary, encoder, optimizer = walk(rule, torch.float32, steps=1)
    dictionary.atoms.grad, encoder.grad = gradients(0, encoder), gradients(1, encoder)
    optimizer.observe(torch.ones(300))  # type: ignore[attr-defined]
    with Largest() as largest:  # type: ignore[no-untyped-call]
        optimizer.step()
    assert 0 < largest.bytes <= 300 * 16 * 4 / 4


@pytest.mark.parametrize("rule", [Adam(lr=0.01), Signum(lr=0.01), HessianDiagonalRule()])
def test_no_gradient_outlives_its_step(rule: UpdateRule) -> None:
    dictionary, encoder, _ = walk(rule, torch.float32, steps=1)
    assert dictionary.atoms.grad is None
    assert encoder.grad is None
