"""The Triton kernels equal the dense references: in the interpreter here, on a GPU with one.

`pytest -m gpu tests/kernels` runs the same tests on a GPU.
"""

import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from dictlearn import kernels
from dictlearn.codes import Codes
from dictlearn.kernels import reference, triton_path

pytestmark: list[pytest.MarkDecorator] = [pytest.mark.gpu] if torch.cuda.is_available() else []

Pairs = tuple[Tensor, Tensor]
Given = tuple[Tensor, Tensor, Tensor, int, Pairs | None]


def given(name: str, dtype: torch.dtype) -> Given:
    """A layer's arguments: n = 4 rows, m = 24 atoms, d = 7 (no block divides it), k = 3."""
    torch.manual_seed(0)
    n, m, d, p = 4, 24, 7, 4
    residual, weight = torch.randn(n, d, dtype=dtype), torch.randn(m, d, dtype=dtype)
    threshold = 0.1 * torch.randn(m, dtype=dtype)
    values, indices = (
        torch.rand(n, p, dtype=dtype),
        torch.stack([torch.randperm(m)[:p] for _ in range(n)]),
    )
    if name == "fewer positives than k":
        threshold += 4
    elif name == "nothing positive":
        threshold += 100
    elif name == "duplicate rows":
        residual[1:4], values[1:4], indices[1:4] = (
            residual[0],
            values[0].clone(),
            indices[0].clone(),
        )
    elif name == "atoms nobody uses":
        threshold[10:] += 100
        indices %= 10
    elif name == "one atom used by every row":
        threshold[7] -= 100
    elif name == "repeated indices":
        indices = indices // 2 * 2 % 6
    elif name == "one row":
        residual, values, indices = residual[:1], values[:1], indices[:1]
    elif name == "no row":
        residual, values, indices = residual[:0], values[:0], indices[:0]
    elif name == "non-contiguous":
        residual, weight = torch.randn(d, n, dtype=dtype).T, torch.randn(d, m, dtype=dtype).T
        values, indices = values.T.contiguous().T, indices.T.contiguous().T
    k = {"k is one": 1, "k is all": m, "k is 20": 20}.get(name, 3)
    previous = None if name == "first layer" else (values, indices)
    return residual, weight, threshold, k, previous


CASES = [
    "first layer",
    "layer after a code",
    "fewer positives than k",
    "nothing positive",
    "duplicate rows",
    "atoms nobody uses",
    "one atom used by every row",
    "repeated indices",
    "one row",
    "no row",
    "non-contiguous",
    "k is one",
    "k is 20",
    "k is all",
]


def results(
    layer: Callable[..., Pairs], decode: Callable[..., Tensor], case: Given, device: str
) -> list[Tensor]:
    """Dense codes, reconstruction and the gradients of all that is differentiable."""
    leaves = [*case[:3]] + ([] if case[4] is None else [case[4][0]])
    leaves = [leaf.to(device).requires_grad_() for leaf in leaves]
    previous = None if case[4] is None else (leaves[3], case[4][1].to(device))
    values, indices = layer(*leaves[:3], case[3], previous)
    decoded = decode(values, indices, leaves[1])
    target = torch.linspace(-1, 1, decoded.numel(), device=device).to(decoded.dtype)
    loss = (decoded - target.view_as(decoded)).square().sum()
    loss = loss + (values * values.detach().cos()).sum()
    gradients = torch.autograd.grad(loss, leaves)
    dense = Codes(values, indices, len(leaves[1])).dense()
    return [tensor.detach().cpu() for tensor in (dense, decoded, *gradients)]


def close(ours: list[Tensor], theirs: list[Tensor], tolerance: float) -> None:
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_layer_and_decode_equal_the_reference(name: str, triton_device: str) -> None:
    case = given(name, torch.float32)
    ours = results(triton_path.topk_layer, triton_path.decode, case, triton_device)
    close(ours, results(reference.topk_layer, reference.decode, case, "cpu"), 1e-4)


@pytest.mark.parametrize("name", ["layer after a code", "repeated indices"])
def test_float64_stays_float64(name: str, triton_device: str) -> None:
    case = given(name, torch.float64)
    ours = results(triton_path.topk_layer, triton_path.decode, case, triton_device)
    close(ours, results(reference.topk_layer, reference.decode, case, "cpu"), 1e-11)


@pytest.fixture
def dispatched(triton_device: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The device on which the room sends every tensor to the kernels, as it does on a GPU."""
    monkeypatch.setattr(kernels, "_is_host", lambda _: False)
    monkeypatch.setattr(kernels, "_triton", lambda _: triton_path)
    return triton_device


def counted(monkeypatch: pytest.MonkeyPatch, name: str) -> list[dict[str, object]]:
    """Note the options of every call of a kernel."""
    calls: list[dict[str, object]] = []
    kernel = getattr(triton_path, name)

    def noted(*arguments: object, **options: object) -> object:
        calls.append(options)
        return kernel(*arguments, **options)

    monkeypatch.setattr(triton_path, name, noted)
    return calls


@pytest.mark.parametrize("selection", ["auto", "fast", "exact"])
def test_the_room_sends_a_layer_and_its_choice_to_the_kernels(
    selection: str, dispatched: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = given("layer after a code", torch.float32)
    calls = counted(monkeypatch, "topk_layer")

    def layer(x: Tensor, weight: Tensor, threshold: Tensor, k: int, start: Pairs | None) -> Pairs:
        codes = kernels.topk_layer(x, weight, threshold, k, start, selection)
        assert codes.indices is not None
        return codes.values, codes.indices

    def decode(values: Tensor, indices: Tensor, atoms: Tensor) -> Tensor:
        return kernels.reconstruct(Codes(values, indices, len(atoms)), atoms)

    decoded = counted(monkeypatch, "decode")
    ours = results(layer, decode, case, dispatched)
    assert [options["fast"] for options in calls] == [selection != "exact"]
    assert len(decoded) == 1
    close(ours, results(reference.topk_layer, reference.decode, case, "cpu"), 1e-4)


def test_the_room_sends_candidates_to_the_kernels(
    dispatched: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = given("layer after a code", torch.float32)
    assert case[4] is not None
    residual, weight, threshold = (tensor.to(dispatched) for tensor in case[:3])
    sized = residual, weight, threshold
    start = case[4][0].to(dispatched), case[4][1].to(dispatched)
    restricted = counted(monkeypatch, "restricted_layer")
    selected = counted(monkeypatch, "top_indices")
    candidates = kernels.screen(*sized, 12, start)
    before = len(restricted)
    found = kernels.restricted_layer(*sized, 3, candidates, start)
    assert len(restricted) == before + 1
    wanted = Codes(*reference.topk_layer(*case), 24).dense()
    torch.testing.assert_close(found.dense().cpu(), wanted, rtol=1e-4, atol=1e-4)
    scores = torch.randn(5, 40, device=dispatched)
    best = kernels.top_indices(scores, 3)
    assert len(selected) == 1
    assert torch.equal(best.sort().values, scores.topk(3).indices.sort().values)
    kernels.top_indices(torch.arange(40, dtype=torch.int16)[None], 3)  # integers are torch's
    assert len(selected) == 1


@pytest.mark.parametrize("there", [False, True])
def test_without_triton_a_gpu_gets_plain_torch(
    there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_path, "available", lambda: there)
    kernels._triton_path.cache_clear()
    gpu = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32)
    try:
        assert (kernels._triton(gpu) is not None) is there  # type: ignore[arg-type]
        gpu.dtype = torch.float64
        assert kernels._triton(gpu) is None  # type: ignore[arg-type]
        assert kernels._triton(torch.zeros(1)) is None
    finally:
        kernels._triton_path.cache_clear()


def test_weights_in_bfloat16_are_summed_in_float32(triton_device: str) -> None:
    case = given("layer after a code", torch.float32)
    narrow = case[1].bfloat16()
    ours = results(
        triton_path.topk_layer, triton_path.decode, (case[0], narrow, *case[2:]), triton_device
    )
    wide = (case[0], narrow.float(), *case[2:])
    theirs = results(reference.topk_layer, reference.decode, wide, "cpu")
    assert [tensor.dtype for tensor in ours].count(torch.bfloat16) == 1
    close(ours[:3] + ours[4:], theirs[:3] + theirs[4:], 1e-4)
    off = (ours[3].float() - theirs[3]).norm()
    assert off < 2**-7 * theirs[3].norm(), "the gradient of the weights, rounded to bfloat16"


def test_all_in_bfloat16_is_the_float32_result_rounded_once(triton_device: str) -> None:
    case = given("first layer", torch.bfloat16)
    residual, weight, threshold = (tensor.to(triton_device) for tensor in case[:3])
    values, indices = triton_path.topk_layer(residual, weight, threshold, 3)
    theirs, places = reference.topk_layer(case[0].float(), case[1].float(), case[2].float(), 3)
    ours = Codes(values.float(), indices, 24).dense().cpu()
    assert torch.equal(ours, Codes(theirs, places, 24).dense().bfloat16().float())
    decoded = triton_path.decode(values, indices, weight)
    exact = ours.double() @ case[1].double()
    # A GPU rounds to bfloat16, the interpreter cuts.
    torch.testing.assert_close(decoded.double().cpu(), exact, rtol=2**-7, atol=1e-6)


def test_candidates_are_the_only_ones_to_choose_from(triton_device: str) -> None:
    case = given("repeated indices", torch.float32)
    candidates = torch.stack([torch.randperm(24)[:11] for _ in range(4)])

    def ours(*arguments: object) -> Pairs:
        start = (*arguments[:4], candidates.to(triton_device), arguments[4])
        return triton_path.restricted_layer(*start)  # type: ignore[arg-type]

    def theirs(
        residual: Tensor, weight: Tensor, threshold: Tensor, k: int, previous: Pairs
    ) -> Pairs:
        scores = (residual @ weight.T - threshold).scatter_add(1, previous[1], previous[0])
        best = scores.gather(1, candidates).topk(k, 1)
        return best.values.relu(), candidates.gather(1, best.indices)

    found = results(ours, triton_path.decode, case, triton_device)
    close(found, results(theirs, reference.decode, case, "cpu"), 1e-4)


def test_choosing_in_bfloat16_keeps_what_float32_keeps(triton_device: str) -> None:
    torch.manual_seed(0)
    residual = torch.randn(8, 48)
    weight = torch.nn.functional.normalize(torch.randn(1000, 48), dim=1)
    operands = [tensor.to(triton_device) for tensor in (residual, weight, torch.zeros(1000))]
    fast = triton_path.topk_layer(operands[0], operands[1], operands[2], 16)
    exact = triton_path.topk_layer(operands[0], operands[1], operands[2], 16, fast=False)
    assert (fast[1].sort(1).values == exact[1].sort(1).values).all(1).float().mean() > 0.95
    theirs = (residual.double() @ weight.double().T).topk(16).values
    torch.testing.assert_close(exact[0].sort(1, descending=True).values.cpu(), theirs.float())
    bare = residual.bfloat16() @ weight.bfloat16().T
    assert not torch.equal(bare.topk(16).indices.sort(1).values, exact[1].sort(1).values.cpu()), (
        "plain bfloat16 would do, so the case shows nothing"
    )


def test_rows_are_screened_in_chunks(triton_device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = given("layer after a code", torch.float32)
    whole = results(triton_path.topk_layer, triton_path.decode, case, triton_device)
    monkeypatch.setattr(triton_path, "SHEET", 48)
    parts = results(triton_path.topk_layer, triton_path.decode, case, triton_device)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


@pytest.mark.parametrize("k", [1, 7, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_selection_is_exact(k: int, dtype: torch.dtype, triton_device: str) -> None:
    torch.manual_seed(0)
    scores = torch.randn(5, 130).to(dtype)
    scores[0], scores[1], scores[2, 50:] = 1.0, scores[1].abs().neg(), 0.0
    scores[3, ::2], scores[3, 0] = -float("inf"), float("inf")
    whole = torch.int32 if dtype == torch.float32 else torch.int16
    neighbours = scores[4, :1].fill_(-1.0).view(whole) + (torch.randperm(130) // 2).to(whole)
    scores[4] = neighbours.view(dtype)
    indices = triton_path.top_indices(scores.to(triton_device), k).cpu()
    found = scores.gather(1, indices).sort(1, descending=True).values
    assert torch.equal(found, scores.topk(k, dim=1).values)
    assert all(len(set(row)) == k for row in indices.tolist())
    assert set(indices[0].tolist()) == set(range(k)), "of equal scores the first"


@pytest.mark.parametrize(("m", "k"), [(4096, 32), (4099, 32), (9000, 40), (9000, 3000)])
def test_selection_of_long_rows_is_exact(m: int, k: int, triton_device: str) -> None:
    torch.manual_seed(0)
    scores = torch.randn(2, m)
    scores[1] = scores[1].mul(4).round()
    indices = triton_path.top_indices(scores.to(triton_device), k).cpu()
    found = scores.gather(1, indices).sort(1, descending=True).values
    assert torch.equal(found, scores.topk(k, dim=1).values)
    assert all(len(set(row)) == k for row in indices.tolist())


@pytest.mark.parametrize(
    "counts", [[750], [70, 0, 58, 64, 128, 3, 1, 0, 86, 340], [0, 64, 576, 63, 1, 46]]
)
def test_sums_of_long_and_short_segments_are_whole(counts: list[int], triton_device: str) -> None:
    """The codes of an atom are a head, whole pieces of 64 and a tail; each may be missing."""
    from dictlearn.kernels.triton.by_atom import by_atom
    from dictlearn.kernels.triton.outer_sum import outer_sum
    from dictlearn.kernels.triton.totals import totals

    torch.manual_seed(0)
    n, k, d, m = 150, 5, 20, len(counts)
    values, rows = torch.randn(n, k), torch.randn(n, d)
    atoms = torch.arange(m).repeat_interleave(torch.tensor(counts))
    indices = atoms[torch.randperm(n * k)].view(n, k)
    codes = by_atom(values.to(triton_device), indices.to(triton_device), m)
    found = outer_sum(codes, rows.to(triton_device), torch.float32).cpu()
    sums = totals(codes, torch.float32).cpu()
    dense = torch.zeros(n, m).scatter_add(1, indices, values)
    torch.testing.assert_close(found, dense.T @ rows, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sums, dense.sum(0), rtol=1e-4, atol=1e-4)


def test_sums_are_repeatable_to_the_bit(triton_device: str) -> None:
    case = given("repeated indices", torch.float32)
    first, second = (
        results(triton_path.topk_layer, triton_path.decode, case, triton_device) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_widths_beyond_one_block_are_summed(triton_device: str) -> None:
    torch.manual_seed(0)
    for width in (300, 384):
        values, indices = torch.randn(2, 9), torch.randint(0, 6, (2, 9))
        leaves = [values.to(triton_device), torch.randn(6, width).to(triton_device)]
        leaves = [leaf.requires_grad_() for leaf in leaves]
        decoded = triton_path.decode(leaves[0], indices.to(triton_device), leaves[1])
        gradients = torch.autograd.grad(decoded.cos().sum(), leaves)
        host = [leaf.detach().cpu().requires_grad_() for leaf in leaves]
        expected = reference.decode(host[0], indices, host[1])
        wanted = torch.autograd.grad(expected.cos().sum(), host)
        close(
            [decoded.detach().cpu(), *(g.cpu() for g in gradients)],
            [expected.detach(), *wanted],
            1e-4,
        )


def test_only_the_wanted_gradients_are_computed(triton_device: str) -> None:
    case = given("layer after a code", torch.float32)
    residual, weight, threshold = (tensor.to(triton_device) for tensor in case[:3])
    assert case[4] is not None
    previous = (case[4][0].to(triton_device), case[4][1].to(triton_device))
    values, indices = triton_path.topk_layer(
        residual, weight, threshold.requires_grad_(), 3, previous
    )
    assert not indices.requires_grad
    (gradient,) = torch.autograd.grad(values.sum(), threshold)
    assert gradient.sum() == -(values > 0).sum()
    with torch.no_grad():
        assert not triton_path.decode(values, indices, weight).requires_grad


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_host_never_waits_for_the_gpu() -> None:
    case = given("repeated indices", torch.float32)
    assert case[4] is not None
    leaves = [tensor.cuda().requires_grad_() for tensor in (*case[:3], case[4][0])]
    previous = (leaves[3], case[4][1].cuda())
    try:
        for mode in ("default", "error"):
            torch.cuda.set_sync_debug_mode(mode)
            values, indices = triton_path.topk_layer(leaves[0], leaves[1], leaves[2], 3, previous)
            decoded = triton_path.decode(values, indices, leaves[1])
            torch.autograd.grad(decoded.square().sum(), leaves)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_availability_follows_the_interpreter(
    triton_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert triton_path.available()
    if triton_device == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "0")
        assert not triton_path.available()


def test_without_triton_the_package_works_and_says_so() -> None:
    code = """
import sys
sys.modules["triton"] = None
import torch
from dictlearn.kernels import topk_layer, triton_path
assert not triton_path.available()
assert topk_layer(torch.ones(2, 3), torch.ones(4, 3), torch.zeros(4), 1).values.sum() == 6
assert sys.modules["triton"] is None
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
