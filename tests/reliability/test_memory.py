"""Too little memory: one sentence with the sizes and what to lower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dictlearn import cli
from dictlearn.callbacks.memory import is_out_of_memory
from dictlearn.inference import Unrolled
from tests.integration.test_mistakes import FAST


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 must have the same dtype"), False),
    ],
)
def test_full_memory_is_known_by_the_errors_of_gpu_torch_and_python(
    error: BaseException, full: bool
) -> None:
    """C7, C8 the memory of GPU, torch or Python is full: known as such, other errors are not."""
    assert is_out_of_memory(error) is full


def test_too_little_memory_is_told_with_the_sizes(
    tmp_path: Path,
    text_folder: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """C7 the GPU is full at the third solve: one sentence with batch size, width, atoms, the size
    of a dense table of codes, what to lower, and (one process) the half, quarter, ... that fits.
    """
    forward, calls = Unrolled.forward, 0

    def failing(self: Unrolled, x: Tensor, *arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls >= 3 and len(x) > 300:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return forward(self, x, *arguments, **options)

    monkeypatch.setattr(Unrolled, "forward", failing)
    monkeypatch.chdir(tmp_path)
    options = [*FAST, "text=local", f"text.path={text_folder}", "inference=unrolled", "prox=topk"]
    options += ["prox.k=8", "text.max_documents=8", "hidden_states.statistics_tokens=512"]
    with pytest.raises(SystemExit) as stop:
        cli.train([*options, "hidden_states.validation_vectors=1024", "max_vectors=3072"])
    assert stop.value.code == 2
    said = capfd.readouterr().err
    (sentence,) = (line for line in said.splitlines() if line.startswith("dictlearn: "))
    assert "with hidden_states.batch_size=1024 vectors of width 384" in sentence
    assert "dictionary.n_atoms=64 and Unrolled (one dense table of codes alone has 0.2" in sentence
    assert "lower hidden_states.batch_size first (256 vectors fit), then dict" in sentence
    assert "Traceback" not in said
