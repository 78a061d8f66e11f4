"""A stopwatch counts what happens within, as long as it does, and nothing of before."""

from __future__ import annotations

import time

import pytest
import torch

from dictlearn.callbacks.stopwatch import Stopwatch

PAUSE = 0.05


def test_it_counts_while_it_runs_and_stands_still_after_an_error() -> None:
    watch, running = Stopwatch(), []

    def fail() -> None:
        with watch:
            time.sleep(PAUSE)
            running.append(watch.seconds)
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    stopped = watch.seconds
    assert PAUSE <= running[0] <= stopped
    time.sleep(PAUSE)
    assert watch.seconds == stopped
    with watch:
        assert watch.seconds >= stopped


def test_what_a_gpu_had_to_do_before_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: time.sleep(PAUSE))
    watch, began = Stopwatch(), time.perf_counter()
    with watch:
        pass
    assert watch.seconds + PAUSE <= time.perf_counter() - began
