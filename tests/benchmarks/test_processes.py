"""The table of processes is made of whole runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import processes


@pytest.mark.slow
def test_two_processes_are_timed_beside_one_and_learn_the_same(
    tmp_path: Path, text_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [
        *("text=local", f"text.path={text_folder}", "dictionary.n_atoms=128", "prox.k=8"),
        *("hidden_states.layers=[0,2]", "hidden_states.block_length=16"),
    ]
    file = tmp_path / "figures.json"
    processes.main(
        ["--vectors", "20480", "--repeats", "1", "--json", str(file), "--override", *small]
    )
    found = json.loads(file.read_text())
    assert "| 2 x " in capsys.readouterr().out
    speeds = [value for key, value in found.items() if key.endswith("vectors_per_second")]
    errors = [value for key, value in found.items() if key.endswith("val/fvu")]
    assert len(speeds) == len(errors) >= 2  # with one core two of the ways are one
    assert min(speeds) > 0
    assert max(errors) == pytest.approx(min(errors), rel=1e-3)
