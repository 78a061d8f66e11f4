"""Too little memory: one sentence with the sizes and what to lower; and what a run holds of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from dictlearn import cli
from dictlearn.callbacks import variants
from dictlearn.callbacks.memory import is_out_of_memory
from dictlearn.inference import Unrolled
from dictlearn.transformer import FrozenTransformer
from tests.integration.test_mistakes import FAST


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 must have the same dtype"), False),
    ],
)
def test_full_memory_is_known_by_the_errors_of_gpu_torch_and_python(
    error: BaseException, full: bool
) -> None:
    """C7, C8 the memory of GPU, torch or Python is full: known as such, other errors are not."""
    assert is_out_of_memory(error) is full


@pytest.mark.run
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


def test_a_transformer_that_does_not_fit_is_told(
    tmp_path: Path,
    text_folder: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(FrozenTransformer, "load", full)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.train([*FAST, "text=local", f"text.path={text_folder}", "text.max_documents=8"])
    assert stop.value.code == 2
    said = capfd.readouterr().err
    assert "The memory is full at step 0" in said
    assert "Traceback" not in said


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


class Resident(pl.Callback):
    """Keeps how much memory the process holds, every thousand steps."""

    def __init__(self) -> None:
        self.held: list[int] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step % 1000 == 0:
            self.held.append(resident())


@pytest.mark.slow
def test_memory_does_not_grow_over_ten_thousand_steps(
    tmp_path: Path, text_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C8 a run of 10,000 steps with all that hangs on it, checkpoints, history, pages, revival and
    a reader ahead: its memory does not grow.
    """
    memory = Resident()
    hung = "dictlearn.training.callbacks"
    monkeypatch.setattr(hung, lambda *given: [*variants.callbacks(*given), memory])
    monkeypatch.chdir(tmp_path)
    options = ["trainer=cpu", "text=local", f"text.path={text_folder}", "text.max_documents=8"]
    options += ["inference=unrolled", "prox=topk", "prox.k=8", "update=adam", "logger=csv"]
    options += ["hidden_states.layers=[0,3]", "hidden_states.block_length=16"]
    options += ["hidden_states.prefetch=true", "hidden_states.statistics_tokens=512"]
    options += ["hidden_states.validation_vectors=512", "hidden_states.batch_size=32"]
    options += ["dictionary.n_atoms=64", "dictionary.dead_after_vectors=4000", "hydra.run.dir=run"]
    options += ["callbacks.checkpoint.every_steps=500", "callbacks.revival.every_vectors=5000"]
    options += ["trainer.enable_progress_bar=false", "trainer.val_check_interval=2500"]
    cli.train([*options, "max_vectors=320000"])
    assert (tmp_path / "run" / "factors.html").is_file()
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) > 100
    assert len(memory.held) == 10
    grown = memory.held[-1] - memory.held[2]  # by 3,000 steps all buffers are there
    assert grown < 16 * 2**20, [held // 2**20 for held in memory.held]
