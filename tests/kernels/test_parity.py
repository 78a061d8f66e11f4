"""The sparse kernels equal the dense references, values and gradients."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from dictlearn.codes import Codes
from dictlearn.errors import InputError
from dictlearn.kernels import (
    batch_topk_layer,
    reconstruct,
    reference,
    restricted_layer,
    screen,
    threshold_layer,
    topk_layer,
)


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
    elif name == "many sheets":
        residual = torch.randn(600, d, dtype=dtype)
        previous = (torch.rand(600, 4, dtype=dtype), torch.randint(0, m, (600, 4)))
    elif name == "every atom":
        k = m
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
    "many sheets",
    "every atom",
]

Layer = Callable[..., tuple[Tensor, Tensor]]
"""Takes the tensors of a case; returns dense codes and their reconstruction over the weight."""


def ours(layer: Callable[..., Codes], **options: object) -> Layer:
    def run(given: Case, *leaves: Tensor) -> tuple[Tensor, Tensor]:
        previous = None if given.previous is None else (leaves[3], given.previous[1])
        codes = layer(*leaves[:3], **options, previous=previous)
        if codes.indices is not None:
            assert all(len(set(row)) == len(row) for row in codes.indices.tolist())
        return codes.dense(), reconstruct(codes, leaves[1])

    return run


def plain(layer: Callable[..., Tensor | tuple[Tensor, Tensor]], **options: object) -> Layer:
    def run(given: Case, *leaves: Tensor) -> tuple[Tensor, Tensor]:
        previous = None if given.previous is None else (leaves[3], given.previous[1])
        codes = layer(*leaves[:3], **options, previous=previous)
        if isinstance(codes, Tensor):
            return codes, codes @ leaves[1]
        dense = Codes(*codes, len(given.weight)).dense()
        return dense, reference.decode(*codes, leaves[1])

    return run


def results(layer: Layer, given: Case) -> list[Tensor]:
    """Return dense codes, reconstruction and all gradients of a layer and its decode."""
    leaves = [given.residual, given.weight, given.threshold]
    leaves += [] if given.previous is None else [given.previous[0]]
    leaves = [leaf.clone(memory_format=torch.preserve_format).requires_grad_() for leaf in leaves]
    dense, decoded = layer(given, *leaves)
    target = torch.linspace(-1, 1, decoded.numel(), dtype=decoded.dtype).view_as(decoded)
    loss = (decoded - target).square().sum() + (dense * dense.detach().cos()).sum()
    gradients = torch.autograd.grad(loss, leaves)
    return [dense.detach(), decoded.detach(), *gradients]


def pairs(given: Case) -> dict[str, tuple[Layer, Layer]]:
    """Return every layer and its reference, with the options it takes for a case."""
    n, m = len(given.residual), len(given.weight)
    k = {"k": given.k}
    torch.manual_seed(1)
    cut = {"cut": 3 + torch.rand(m, dtype=given.weight.dtype)}
    candidates = torch.stack([torch.randperm(m)[: max(given.k, m // 2)] for _ in range(n)])
    some = {"candidates": candidates, **k}
    return {
        "topk": (ours(topk_layer, **k), plain(reference.topk_layer, **k)),
        "batch": (ours(batch_topk_layer, **k), plain(reference.batch_topk_layer, **k)),
        "above": (ours(threshold_layer, **cut), plain(reference.threshold_layer, **cut)),
        "restricted": (
            ours(restricted_layer, **some),
            plain(reference.restricted_layer, **some),
        ),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("layer", ["topk", "batch", "above", "restricted"])
def test_layer_and_decode_equal_the_reference(layer: str, name: str, dtype: torch.dtype) -> None:
    given = case(name, dtype)
    mine, theirs = (results(form, given) for form in pairs(given)[layer])
    if layer == "batch" and name == "duplicate rows":
        # Of equal scores in different rows either may be kept.
        mine, theirs = ([form[0].flatten().sort().values] for form in (mine, theirs))
    tolerance = 1e-4 if dtype == torch.float32 else 1e-11
    for our, their in zip(mine, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("layer", ["topk", "batch", "above"])
def test_choosing_in_bfloat16_or_exactly_is_the_same(layer: str, name: str) -> None:
    given = case(name, torch.float32)
    k: dict[str, object] = {"k": given.k}
    takes: dict[str, tuple[Callable[..., Codes], dict[str, object]]] = {
        "topk": (topk_layer, k),
        "batch": (batch_topk_layer, k),
        "above": (threshold_layer, {"cut": 3.0}),
    }
    function, options = takes[layer]
    fast = results(ours(function, selection="fast", **options), given)
    exact = results(ours(function, selection="exact", **options), given)
    for our, their in zip(fast, exact, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-4)


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
    values = topk_layer(*given[:4], (start, given.previous[1])).values
    first, second = (torch.autograd.grad(values.sum(), start, retain_graph=True) for _ in range(2))
    assert torch.equal(*first, *second)


def test_autocast_does_not_round_the_codes() -> None:
    given = case("layer after a code", torch.float32)
    layer = ours(topk_layer, k=given.k)
    without = results(layer, given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = results(layer, given)
    assert all(torch.equal(a, b) for a, b in zip(without, under, strict=True))


def test_a_fast_choice_has_exact_values_of_the_largest_scores() -> None:
    torch.manual_seed(0)
    residual, weight, threshold = torch.randn(700, 64), torch.randn(1536, 64), torch.rand(1536)
    previous = (torch.rand(700, 8), torch.randint(0, 1536, (700, 8)))
    codes = topk_layer(residual, weight, 20 + threshold, 32, previous, selection="fast")
    values, indices = reference.topk_layer(residual, weight, 20 + threshold, 32, previous)
    found, wanted = codes.dense(), Codes(values, indices, 1536).dense()
    same = ((found > 0) == (wanted > 0)).all(1)
    assert same.float().mean() >= 0.99
    torch.testing.assert_close(found[same], wanted[same], rtol=1e-4, atol=1e-4)


def test_a_choice_must_be_known() -> None:
    given = case("first layer", torch.float32)
    with pytest.raises(InputError, match=r"inference\.selection=fats .*Did you mean 'fast'"):
        topk_layer(*given[:4], selection="fats")


def test_codes_are_dense_where_most_scores_are_above_the_threshold() -> None:
    given = case("layer after a code", torch.float64)
    codes = threshold_layer(*given[:3], 0.0, given.previous)
    assert codes.indices is None
    expected = reference.threshold_layer(*given[:3], torch.tensor(0.0), given.previous)
    torch.testing.assert_close(codes.values, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_screen_holds_what_a_layer_would_keep(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    given = [torch.randn(50, 16), torch.randn(600, 16), torch.randn(600)]
    residual, weight, threshold = (tensor.to(dtype).requires_grad_() for tensor in given)
    for previous in (None, (5 * torch.rand(50, 6, dtype=dtype), torch.randint(0, 600, (50, 6)))):
        candidates = screen(residual, weight, threshold, 40, previous)
        assert candidates.shape == (50, 40)
        wanted = topk_layer(residual, weight, threshold, 8, previous, selection="exact")
        found = restricted_layer(residual, weight, threshold, 8, candidates, previous)
        torch.testing.assert_close(found.dense(), wanted.dense(), rtol=1e-4, atol=1e-4)


def test_codes_of_other_atoms_do_not_enter_a_restricted_layer() -> None:
    given = case("layer after a code", torch.float64)
    assert given.previous is not None
    candidates = torch.arange(5, 15).expand(9, -1)
    codes = restricted_layer(*given[:3], 10, candidates, given.previous)
    start = Codes(*given.previous, 40).dense()
    scores = (start + given.residual @ given.weight.T - given.threshold).relu()
    inside = torch.zeros(40, dtype=torch.bool)
    inside[5:15] = True
    torch.testing.assert_close(codes.dense(), torch.where(inside, scores, 0.0))


def test_no_gradient_at_places_that_are_empty() -> None:
    torch.manual_seed(0)
    atoms = torch.randn(12, 5, dtype=torch.float64, requires_grad=True)
    values = torch.zeros(4, 6, dtype=torch.float64)
    values[:, :2] = torch.rand(4, 2)
    values.requires_grad_()
    indices = torch.stack([torch.randperm(12)[:6] for _ in range(4)])
    target = torch.randn(4, 5, dtype=torch.float64)
    decoded = reconstruct(Codes(values, indices, 12), atoms)
    expected = reference.decode(values, indices, atoms)
    found, wanted = (
        torch.autograd.grad((x * target).sum(), (values, atoms)) for x in (decoded, expected)
    )
    torch.testing.assert_close(found[1], wanted[1])
    torch.testing.assert_close(found[0], torch.where(values > 0, wanted[0], 0.0))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", CASES)
def test_the_gpu_gives_what_the_cpu_gives(name: str) -> None:
    given = case(name, torch.float64)
    host = results(plain(reference.topk_layer, k=given.k), given)
    residual, weight, threshold = (tensor.cuda() for tensor in given[:3])
    previous = None
    if given.previous is not None:
        previous = given.previous[0].cuda(), given.previous[1].cuda()
    codes = topk_layer(residual, weight, threshold, given.k, previous)
    torch.testing.assert_close(codes.dense().cpu(), host[0])
    torch.testing.assert_close(reconstruct(codes, weight).cpu(), host[1])
