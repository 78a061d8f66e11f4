"""The compiled path runs where it can, and says what is missing where it cannot."""

import pytest
import torch

from dictlearn.errors import InputError
from dictlearn.inference import engine
from dictlearn.inference.engine import pick


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
