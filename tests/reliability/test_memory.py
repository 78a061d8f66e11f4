"""Too little memory: one sentence with the sizes and what to lower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dictlearn import cli
from dictlearn.inference import Unrolled
from tests.integration.test_mistakes import FAST

FAILURES = {
    "GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    "CPU": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"),
    "Python": MemoryError(),
}


@pytest.mark.parametrize("where", FAILURES)
def test_too_little_memory_is_told_with_the_sizes(
    where: str,
    tmp_path: Path,
    text_folder: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """C7, C8 the memory is full at the third solve: one sentence with batch size, width, atoms and
    what to lower.
    """
    forward, calls = Unrolled.forward, 0

    def failing(self: Unrolled, *arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise FAILURES[where]
        return forward(self, *arguments, **options)

    monkeypatch.setattr(Unrolled, "forward", failing)
    monkeypatch.chdir(tmp_path)
    options = [*FAST, "text=local", f"text.path={text_folder}", "inference=unrolled", "prox=topk"]
    with pytest.raises(SystemExit) as stop:
        cli.train([*options, "prox.k=8"])
    assert stop.value.code == 2
    said = capfd.readouterr().err
    (sentence,) = (line for line in said.splitlines() if line.startswith("dictlearn: "))
    assert "with hidden_states.batch_size=1024 vectors of width 384" in sentence
    assert "dictionary.n_atoms=64 and Unrolled (one dense table of codes alone has 0.2" in sentence
    assert "lower hidden_states.batch_size first" in sentence
    assert "Traceback" not in said
