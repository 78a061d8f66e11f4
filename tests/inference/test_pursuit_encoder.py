"""Matching pursuit that learns: values and gradients of a plain dense transcription."""

import pytest
import torch
from torch import Tensor

from dictlearn.inference import PursuitEncoder, matching_pursuit, training_loss
from dictlearn.prox import TopK
from tests.inference.problems import dictionary_of, problem


def dense_pursuit(x: Tensor, atoms: Tensor, k: int) -> Tensor:
    """Costa et al. 2025, with one-hot codes: the residual is what the codes so far leave."""
    residual, codes = x, torch.zeros(len(x), len(atoms), dtype=x.dtype)
    for _ in range(k):
        scores = torch.relu(residual @ atoms.T)
        one_hot = torch.zeros_like(scores).scatter(1, scores.argmax(1, keepdim=True), 1.0)
        step = scores * one_hot
        codes = codes + step
        residual = residual - step @ atoms
    return codes


@pytest.fixture(params=["torch", "compiled"])
def engine(request: pytest.FixtureRequest) -> str:
    if request.param == "compiled":
        pytest.importorskip("numba")
    return str(request.param)


@pytest.mark.parametrize("k", [1, 2, 7, 12])
def test_gradients_are_those_of_dense_autograd(k: int, engine: str) -> None:
    given = problem(n=40, d=8, m=48)  # few dimensions: atoms are chosen again
    x, atoms = given.x.requires_grad_(), given.atoms.requires_grad_()
    x.data[0] = 0.0  # nothing to take off
    codes = PursuitEncoder(engine)(x, atoms, TopK(k)).codes
    expected = dense_pursuit(x, atoms, k)
    torch.testing.assert_close(codes.dense(), expected)
    if k == 12:
        assert (codes.l0() < k)[1:].any()

    g = torch.Generator().manual_seed(0)
    target = torch.randn(expected.shape, generator=g, dtype=expected.dtype)
    ours = torch.autograd.grad((codes.dense() * target).sum(), [x, atoms])
    dense = torch.autograd.grad((expected * target).sum(), [x, atoms])
    for our, their in zip(ours, dense, strict=True):
        assert their.abs().max() > 0.1
        torch.testing.assert_close(our, their)


def test_the_gradient_of_the_loss_is_that_of_dense_autograd(engine: str) -> None:
    given, prox = problem(n=60, d=16, m=48), TopK(6)
    dictionary = dictionary_of(given.atoms)
    encoder = PursuitEncoder(engine)
    encoder.build(dictionary, prox)
    codes = encoder.train()(given.x, dictionary.atoms, prox).codes
    loss = training_loss(given.x, dictionary.decode(codes), codes, prox)
    (ours,) = torch.autograd.grad(loss, [dictionary.atoms])
    plain = dense_pursuit(given.x, dictionary.atoms, 6) @ dictionary.atoms
    (dense,) = torch.autograd.grad(
        0.5 * (given.x - plain).square().sum(1).mean(), [dictionary.atoms]
    )
    torch.testing.assert_close(ours, dense)


def test_nothing_as_large_as_all_atoms_times_rows_is_kept(engine: str) -> None:
    given = problem(n=200, d=8, m=100)
    atoms = given.atoms.requires_grad_()
    sizes: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        PursuitEncoder(engine)(given.x, atoms, TopK(4))
    assert sizes
    assert sum(sizes) <= 200 * 8 + 100 * 8 + 4 * 200 * 4


def test_it_learns(engine: str) -> None:
    given, prox = problem(n=400, d=16, m=48, dtype=torch.float32), TopK(3)
    g = torch.Generator().manual_seed(1)
    dictionary = dictionary_of(
        torch.nn.functional.normalize(given.atoms + 0.15 * torch.randn(48, 16, generator=g))
    )
    encoder = PursuitEncoder(engine)
    encoder.build(dictionary, prox)
    optimizer = torch.optim.Adam(dictionary.parameters(), lr=0.01)
    losses = []
    for _ in range(40):
        codes = encoder(given.x, dictionary.atoms, prox).codes
        loss = training_loss(given.x, dictionary.decode(codes), codes, prox)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        dictionary.renormalize_()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_without_gradients_it_is_matching_pursuit() -> None:
    given = problem()
    with torch.no_grad():
        codes = PursuitEncoder()(given.x, given.atoms, TopK(5)).codes
    torch.testing.assert_close(codes.dense(), matching_pursuit(*given, 5).dense())
    assert not codes.values.requires_grad
