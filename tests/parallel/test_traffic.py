"""What shards send each other in a step of inference: residuals `[n, d]`, never dense codes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dictlearn.inference import Fista, Inference, Iterative, Unrolled
from dictlearn.losses import Objective
from dictlearn.mesh import Mesh
from dictlearn.prox import Prox, Soft, TopK
from dictlearn.sharding import share_out_learned
from dictlearn.update import Adam
from tests.parallel.processes import on_processes
from tests.parallel.small import D, Learned, M, N

Sent = dict[tuple[str, tuple[int, ...]], int]

K = 4
FEW, MANY = 3, 5  # steps; what they differ in is what two steps send
RESIDUAL, CANDIDATES = ("allreduce_", (N, D)), ("allgather_", (N, K))
UPHILL = ("allreduce_", (N, 1))  # whether a row of FISTA forgets its momentum


class Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what a process hands to torch.distributed, by whichever function: (name, shape)."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sent: Counter[tuple[str, tuple[int, ...]]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func.name().removeprefix("c10d::")
            given = args[1] if name.startswith("allgather") else args[0]
            self.sent.update((name, tuple(tensor.shape)) for tensor in _tensors(given))
        return func(*args, **(kwargs or {}))


def _tensors(given: Any) -> list[Tensor]:
    return [given] if isinstance(given, Tensor) else [t for entry in given for t in _tensors(entry)]


def fista(steps: int) -> Inference:
    return Iterative(Fista(), tolerance=0, max_steps=steps)


def unrolled(steps: int) -> Inference:
    return Unrolled(steps, selection="exact")


WAYS: dict[str, tuple[Prox, Callable[[int], Inference], Sent]] = {
    "fista": (Soft(0.1), fista, {RESIDUAL: 1, UPHILL: 1}),
    "unrolled, soft": (Soft(0.1), unrolled, {RESIDUAL: 1}),
    "unrolled, topk": (TopK(K), unrolled, {RESIDUAL: 1, CANDIDATES: 1}),
    # Backward, what is spread comes back as a sum of gradients.
    "unrolled, backward": (TopK(K), unrolled, {RESIDUAL: 2, CANDIDATES: 1}),
}


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[int, Counter[Any]]]:
    """What each of two shards sends for the codes of N rows, by way and number of steps."""

    def one(mesh: Mesh, name: str, steps: int) -> Sent:
        prox, made, _ = WAYS[name]
        learned = Learned(made(steps), prox, Objective(), Adam())
        share_out_learned(learned, mesh)
        x = torch.ones(N, D, dtype=torch.float64)
        with Traffic() as traffic:
            solution = learned.inference(x, learned.dictionary.atoms, prox, certify=False)
            if name.endswith("backward"):
                torch.autograd.backward(solution.codes.values.sum())
        return dict(traffic.sent)

    def task(mesh: Mesh) -> dict[str, dict[int, Sent]]:
        return {name: {steps: one(mesh, name, steps) for steps in (FEW, MANY)} for name in WAYS}

    first, second = on_processes(2, tmp_path_factory.mktemp("two"), task)
    assert first == second
    return {name: {steps: Counter(by) for steps, by in way.items()} for name, way in first.items()}


@pytest.mark.parametrize("name", WAYS)
def test_a_step_of_inference_sends_one_sum_of_residuals_and_no_dense_codes(
    name: str, sent: dict[str, dict[int, Counter[Any]]]
) -> None:
    _, _, of_a_step = WAYS[name]
    few, many = sent[name][FEW], sent[name][MANY]
    assert many - few == {what: (MANY - FEW) * count for what, count in of_a_step.items()}
    assert few - many == {}
    assert max(math.prod(shape) for _, shape in many) == N * D < N * M // 2
