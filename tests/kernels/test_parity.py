"""The sparse kernels equal the dense references, values and gradients."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.kernels import reconstruct, reference, top_indices, topk_layer


class Case(NamedTuple):
    residual: Tensor
    weight: Tensor
    threshold: Tensor
    k: int
    previous: tuple[Tensor, Tensor] | None


def case(name: str, dtype: torch.dtype) -> Case:
    torch.manual_seed(0)
    n, m, d, k = 9, 40, 6, 3
    residual, weight = torch.randn(n, d, dtype=dtype), torch.randn(m, d, dtype=dtype)
    threshold = 0.1 * torch.randn(m, dtype=dtype)
    indices = torch.stack([torch.randperm(m)[:4] for _ in range(n)])
    previous: tuple[Tensor, Tensor] | None = (torch.rand(n, 4, dtype=dtype), indices)
    if name == "first layer":
        previous = None
    elif name == "fewer positives than k":
        threshold += 4
    elif name == "nothing positive":
        threshold += 100
    elif name == "duplicate rows":
        residual[1:5] = residual[0]
        assert previous is not None
        previous[0][1:5], previous[1][1:5] = previous[0][0].clone(), previous[1][0].clone()
    elif name == "atoms never chosen":
        threshold[10:] += 100
        previous = (torch.rand(n, 4, dtype=dtype), indices % 10)
    elif name == "repeated indices":
        previous = (torch.rand(n, 4, dtype=dtype), indices // 2 * 2 % 6)
    elif name == "one row":
        residual, previous = residual[:1], (torch.rand(1, 4, dtype=dtype), indices[:1])
    elif name == "non-contiguous":
        residual = torch.randn(d, n, dtype=dtype).T
        weight = torch.randn(d, m, dtype=dtype).T
    elif name == "two stages":
        residual = torch.randn(20, d, dtype=dtype)
        weight, threshold = torch.randn(403, d, dtype=dtype), torch.randn(403, dtype=dtype)
        previous = (torch.rand(20, 4, dtype=dtype), torch.randint(0, 403, (20, 4)))
    return Case(residual, weight, threshold, k, previous)


CASES = [
    "first layer",
    "layer after a code",
    "fewer positives than k",
    "nothing positive",
    "duplicate rows",
    "atoms never chosen",
    "repeated indices",
    "one row",
    "non-contiguous",
    "two stages",
]

Layer = Callable[..., tuple[Tensor, Tensor]]


def kernel(*arguments: object) -> tuple[Tensor, Tensor]:
    codes = topk_layer(*arguments)  # type: ignore[arg-type]
    assert codes.indices is not None
    return codes.values, codes.indices


def results(layer: Layer, decode: Callable[..., Tensor], given: Case) -> list[Tensor]:
    """Run a layer and a decode on it; return dense codes, reconstruction and all gradients."""
    leaves = [given.residual, given.weight, given.threshold]
    leaves += [] if given.previous is None else [given.previous[0]]
    leaves = [leaf.clone(memory_format=torch.preserve_format).requires_grad_() for leaf in leaves]
    previous = None if given.previous is None else (leaves[3], given.previous[1])
    values, indices = layer(*leaves[:3], given.k, previous)
    decoded = decode(values, indices, leaves[1])
    target = torch.linspace(-1, 1, decoded.numel(), dtype=decoded.dtype).view_as(decoded)
    loss = (decoded - target).square().sum() + (values * values.detach().cos()).sum()
    gradients = torch.autograd.grad(loss, leaves)
    dense = Codes(values, indices, len(given.weight)).dense()
    return [dense.detach(), decoded.detach(), *gradients]


def fused_decode(values: Tensor, indices: Tensor, atoms: Tensor) -> Tensor:
    return reconstruct(Codes(values, indices, len(atoms)), atoms)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_layer_and_decode_equal_the_reference(name: str, dtype: torch.dtype) -> None:
    given = case(name, dtype)
    ours = results(kernel, fused_decode, given)
    theirs = results(reference.topk_layer, reference.decode, given)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-11
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=tolerance, atol=tolerance)


def test_the_reference_is_the_formula() -> None:
    given = case("layer after a code", torch.float64)
    assert given.previous is not None
    start = Codes(*given.previous, 40).dense()
    scores = start + given.residual @ given.weight.T - given.threshold
    values, indices = reference.topk_layer(*given)
    kept = scores.sort(1, descending=True).values[:, :3]
    torch.testing.assert_close(values.sort(1, descending=True).values, kept.clamp_min(0))
    torch.testing.assert_close(scores.gather(1, indices).clamp_min(0), values)


def test_the_gradient_may_be_taken_twice_from_one_graph() -> None:
    given = case("layer after a code", torch.float64)
    assert given.previous is not None
    start = given.previous[0].requires_grad_()
    values, _ = kernel(*given[:4], (start, given.previous[1]))
    first, second = (torch.autograd.grad(values.sum(), start, retain_graph=True) for _ in range(2))
    assert torch.equal(*first, *second)


@pytest.mark.parametrize(("m", "k"), [(1536, 32), (1539, 7), (700, 32), (64, 64), (5, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_selection_finds_the_largest_entries(m: int, k: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    scores = torch.randn(33, m).to(dtype)
    scores[0] = 1.0
    indices = top_indices(scores, k)
    found = scores.gather(1, indices).sort(1, descending=True).values
    assert torch.equal(found, scores.topk(k, dim=1).values)
    assert all(len(set(row)) == k for row in indices.tolist())


def test_autocast_does_not_round_the_codes() -> None:
    given = case("layer after a code", torch.float32)
    plain = results(kernel, fused_decode, given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = results(kernel, fused_decode, given)
    assert all(torch.equal(a, b) for a, b in zip(plain, under, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", CASES)
def test_the_gpu_gives_what_the_cpu_gives(name: str) -> None:
    given = case(name, torch.float64)
    host = results(reference.topk_layer, reference.decode, given)
    residual, weight, threshold = (tensor.cuda() for tensor in given[:3])
    previous = None
    if given.previous is not None:
        previous = given.previous[0].cuda(), given.previous[1].cuda()
    codes = topk_layer(residual, weight, threshold, given.k, previous)
    torch.testing.assert_close(codes.dense().cpu(), host[0])
    torch.testing.assert_close(reconstruct(codes, weight).cpu(), host[1])
