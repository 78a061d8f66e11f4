"""Tiny vectors, and a data folder in which no peer is there and none is ever installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import peers


@pytest.fixture(autouse=True)
def settings_of_torch() -> Iterator[None]:
    """Scripts choose threads and precision for their process, which here is that of all tests."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder in which the installation of every peer has failed before."""
    for name in peers.PEERS:
        home = peers.environments(tmp_path) / name
        home.mkdir(parents=True)
        (home / "failed.txt").write_text("not installed: no network in tests")
    return tmp_path


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    """Sparse combinations of 160 directions in 64 dimensions, `[2600, 64]`."""
    draws = np.random.default_rng(0)
    atoms = draws.standard_normal((160, 64))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    codes = draws.exponential(size=(2600, 160)) * (draws.random((2600, 160)) < 0.08)
    rows = codes @ atoms + 0.05 * draws.standard_normal((2600, 64))
    file = tmp_path / "rows.npy"
    np.save(file, rows.astype(np.float32))
    return file
