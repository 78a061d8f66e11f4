from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks import vectors


def arguments(*given: str | Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    vectors.add_arguments(parser)
    found = parser.parse_args([str(entry) for entry in given])
    vectors.configure(found)
    return found


def test_rows_are_centred_and_scaled_by_the_training_rows(rows_file: Path, tmp_path: Path) -> None:
    found = vectors.rows(arguments("--vectors", rows_file, "--data", tmp_path))
    train, held = found.load()
    assert torch.allclose(train.mean(0), torch.zeros(64), atol=1e-5)
    assert float(train.square().sum(1).mean()) == pytest.approx(1.0, abs=1e-4)
    assert (len(train), len(held)) == (2340, 260)


def test_the_last_tenth_of_a_file_is_held_out(rows_file: Path, tmp_path: Path) -> None:
    found = vectors.rows(arguments("--vectors", rows_file, "--data", tmp_path))
    train, held = (part.numpy() for part in found.load())
    raw = np.load(rows_file)
    mean = raw[:2340].mean(0)
    scale = np.sqrt(np.square(raw[:2340] - mean).sum(1).mean())
    assert np.allclose(held, (raw[2340:] - mean) / scale, atol=1e-4)
    in_order = (raw[:2340] - mean) / scale
    assert np.allclose(np.sort(train, axis=0), np.sort(in_order, axis=0), atol=1e-4)
    assert not np.allclose(train, in_order, atol=1e-2)  # drawn in a random order


def test_a_file_of_held_out_rows_is_used_whole(rows_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "held.npy"
    np.save(other, np.load(rows_file)[:70])
    found = vectors.rows(arguments("--vectors", rows_file, "--held", other, "--data", tmp_path))
    train, held = found.load()
    assert (len(train), len(held)) == (2600, 70)


def test_every_format_gives_the_same_rows(rows_file: Path, tmp_path: Path) -> None:
    tensor = torch.from_numpy(np.load(rows_file))
    torch.save(tensor, tmp_path / "rows.pt")
    torch.save({"x": tensor}, tmp_path / "dict.pt")
    save_file({"x": tensor}, tmp_path / "rows.safetensors")
    for name in ("rows.pt", "dict.pt", "rows.safetensors"):
        assert np.array_equal(vectors.read(tmp_path / name), tensor.numpy())


def test_a_file_of_another_shape_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 3, 4), dtype=np.float32))
    with pytest.raises(SystemExit, match=r"\[N, d\] is wanted"):
        vectors.read(tmp_path / "a.npy")


def test_rows_are_made_once_and_anew_when_the_file_changes(rows_file: Path, tmp_path: Path) -> None:
    asked = arguments("--vectors", rows_file, "--data", tmp_path)
    first = vectors.rows(asked)
    made = first.train.stat().st_mtime_ns
    assert vectors.rows(asked).train.stat().st_mtime_ns == made
    np.save(rows_file, np.load(rows_file)[:1000])
    assert vectors.rows(asked).train != first.train


def test_fvu_is_one_for_the_mean_and_zero_for_the_rows() -> None:
    x = torch.randn(50, 8)
    assert vectors.fvu(x, x) == 0.0
    assert vectors.fvu(x, x.mean(0).expand_as(x)) == pytest.approx(1.0)
