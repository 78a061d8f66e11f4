"""Every launch compiles to machine code for real GPUs, also on a machine that has none."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch


class PretendedGpu:
    """As much of Triton's driver as compiling asks for."""

    def __init__(self, capability: int) -> None:
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return int(self.target.arch)

    def get_current_stream(self, _device: int) -> int:
        return 0


@pytest.fixture(params=[90, pytest.param(80, marks=pytest.mark.slow)])
def compiled(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[list[Any]]:
    """What the launches of a test compiled to; nothing is launched."""
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("the interpreter compiles nothing")
    from triton.runtime import JITFunction
    from triton.runtime.driver import driver

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    found: list[Any] = []
    run = JITFunction.run

    def warmup(self: Any, *arguments: Any, **options: Any) -> None:
        found.append(run(self, *arguments, **{**options, "warmup": True}))

    monkeypatch.setattr(JITFunction, "run", warmup)
    before = dict(vars(driver))
    driver.set_active(PretendedGpu(request.param))
    yield found
    vars(driver).clear()
    vars(driver).update(before)


@pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16]
    + [pytest.param(dtype, marks=pytest.mark.slow) for dtype in (torch.float32, torch.float64)],
)
def test_every_kernel_compiles(dtype: torch.dtype, compiled: list[Any]) -> None:
    from dictlearn.kernels.triton.by_atom import by_atom
    from dictlearn.kernels.triton.combine import combine
    from dictlearn.kernels.triton.lookup import lookup
    from dictlearn.kernels.triton.outer_sum import outer_sum
    from dictlearn.kernels.triton.products import products
    from dictlearn.kernels.triton.select import select
    from dictlearn.kernels.triton.totals import totals

    n, m, d, k = 16, 48, 768, 32
    indices, wanted = torch.randint(0, m, (n, k)), torch.randint(0, m, (n, 40))
    values = torch.rand(n, k, dtype=torch.promote_types(dtype, torch.float32))
    table, rows = torch.rand(m, d, dtype=dtype), torch.rand(n, d, dtype=values.dtype)
    combine(values, indices, table)
    products(rows, table, wanted)
    lookup(values, indices, wanted)
    codes = by_atom(values, indices, m)
    outer_sum(codes, rows, dtype)
    totals(codes, dtype)
    if dtype != torch.float64:
        select(torch.rand(4, 4096).to(dtype), 40)
        select(torch.rand(4, 40).to(dtype), 32)
    assert len(compiled) == (6 if dtype == torch.float64 else 8)
    assert all(kernel.asm["cubin"] for kernel in compiled)
