"""Who takes which GPU, and when: promises that are kept without one."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from dictlearn import evaluation
from dictlearn.callbacks import throughput, utilisation
from dictlearn.callbacks.random_state import random_states
from dictlearn.hidden_states import CachedDataModule, HiddenStateDataModule
from dictlearn.hidden_states.background import Background

GPU = torch.device("cuda", 3)


def test_a_run_on_cpus_leaves_a_gpu_that_is_there_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(*_: object) -> None:
        raise AssertionError("The GPU was asked.")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", begin)
    assert random_states(1)[0]["cuda"] is None


def test_the_state_of_a_gpu_in_use_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    state = torch.arange(16, dtype=torch.uint8)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: state)
    assert torch.equal(random_states(1)[0]["cuda"], state)


class FakeStream:
    """Of no GPU."""

    def __init__(self, device: torch.device) -> None:
        assert device.type == "cuda"
        self.device = GPU

    def wait_stream(self, other: object) -> None:
        """Do not."""


def test_the_thread_that_works_ahead_is_on_the_gpu_of_its_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen: list[tuple[int, torch.device]] = []
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "current_stream", FakeStream)
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda device: chosen.append((threading.get_ident(), device))
    )
    monkeypatch.setattr(Background, "_run", lambda self, make: make())
    background = Background(torch.device("cuda"))
    thread = background.submit(threading.get_ident).result()
    background.close()
    assert chosen == [(thread, GPU)]
    assert thread != threading.get_ident()


def test_a_gpu_without_such_a_product_has_no_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(device: torch.device) -> float:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling cublasGemmEx")

    monkeypatch.setattr(utilisation, "_measured", unsupported)
    assert utilisation.multiplication_ceiling(GPU) == 0


@pytest.mark.parametrize("kind", ["live", "cached"])
def test_held_out_vectors_are_made_where_the_dictionary_is(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: list[torch.device] = []
    owner = CachedDataModule if kind == "cached" else HiddenStateDataModule

    def made(data: Any) -> None:
        places.append(data._root_device())

    monkeypatch.setattr(owner, "prepare_data", lambda data: None)
    monkeypatch.setattr(owner, "setup", made)
    (tmp_path / ".hydra").mkdir()
    options = {"live": "StreamOptions", "cached": "CachedOptions"}[kind]
    np.save(tmp_path / "x.npy", np.ones((16, 4), np.float32))
    path = f"  path: {tmp_path / 'x.npy'}\n" if kind == "cached" else ""
    (tmp_path / ".hydra" / "config.yaml").write_text(
        f"seed: 0\ndata_dir: {tmp_path}\ntext: {{_target_: dictlearn.text.InstalledDocs}}\n"
        f"hidden_states:\n  _target_: dictlearn.hidden_states.{options}\n"
        f"  validation_vectors: 8\n{path}"
    )
    transformer = SimpleNamespace(resolve_layers=lambda layers: (0,), hidden_size=4)
    trained = SimpleNamespace(transformer=transformer, atoms=torch.empty(0, device="meta"))
    evaluation._data(tmp_path, cast("Any", trained), 8)
    assert places == [torch.device("meta")]


def test_the_memory_of_the_run_is_not_that_of_the_measured_product(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peak = {"bytes": 5}

    def measured(device: torch.device) -> float:
        peak["bytes"] = 300
        return 1e12

    monkeypatch.setattr(throughput, "multiplication_ceiling", measured)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peak["bytes"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: peak.update(bytes=4))
    callback = throughput.Throughput()
    trainer = SimpleNamespace(checkpoint_callbacks=[], datamodule=None)
    callback.on_train_start(cast("Any", trainer), cast("Any", SimpleNamespace(device=GPU)))
    assert (callback._peak, peak["bytes"]) == (5, 4)
