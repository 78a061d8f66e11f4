"""The compiled path runs where it can, and says what is missing where it cannot."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dictlearn
from dictlearn.errors import InputError
from dictlearn.inference import engine
from dictlearn.inference.engine import pick

ROOT = Path(dictlearn.__file__).parent.parent


def test_auto_takes_the_compiled_path_on_a_cpu_with_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    x, elsewhere = torch.empty(2), torch.empty(2, device="meta")
    assert pick("auto", x)
    assert pick("compiled", x)
    assert not pick("torch", x)
    assert not pick("auto", elsewhere)
    monkeypatch.setattr(engine, "available", lambda: False)
    assert not pick("auto", x)
    with pytest.raises(InputError, match=r"pip install transformer-factors\[cpu\]"):
        pick("compiled", x)


def test_mistakes_are_told_by_their_key() -> None:
    with pytest.raises(InputError, match=r"inference\.engine=compiled runs on a CPU"):
        pick("compiled", torch.empty(2, device="meta"))
    with pytest.raises(InputError, match=r"inference\.engine=torhc .*Did you mean 'torch'"):
        pick("torhc", torch.empty(2))


def test_machine_code_is_that_of_the_sources_as_they_are_now(tmp_path: Path) -> None:
    pytest.importorskip("numba")
    compiled = "from dictlearn.inference.compiled import compiled\n"
    (tmp_path / "inner.py").write_text(compiled + "@compiled\ndef f(x): return x + 1\n")
    (tmp_path / "outer.py").write_text(
        compiled + "from inner import f\n@compiled\ndef g(x): return f(x)\n"
    )
    command = "from outer import g; print(g(1), sum(g.stats.cache_hits.values()))"

    def run() -> str:
        place = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "NUMBA_CACHE_DIR": ""}
        done = subprocess.run(
            [sys.executable, "-c", command],
            env={**os.environ, **place},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    assert [run(), run()] == ["2 0", "2 1"]
    (tmp_path / "inner.py").write_text(compiled + "@compiled\ndef f(x): return x + 2\n")
    assert run() == "3 0"
