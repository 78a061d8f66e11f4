"""A plain file of vectors is enough to learn from."""

from __future__ import annotations

import os
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dictlearn.errors import InputError
from dictlearn.hidden_states import CachedDataModule, CachedOptions
from dictlearn.hidden_states.batch import HiddenStates
from dictlearn.hidden_states.cache.plain import read_vectors
from dictlearn.hidden_states.module import SOME
from tests.hidden_states.cache.conftest import cached

N, WIDTH = 1003, 12
ROWS = torch.randn(N, WIDTH, generator=torch.Generator().manual_seed(0)) * 2 + 5


def npy(path: Path, rows: torch.Tensor = ROWS) -> Path:
    np.save(path / "x.npy", rows.numpy())
    return path / "x.npy"


def fortran(path: Path) -> Path:
    np.save(path / "x.npy", np.asfortranarray(ROWS.numpy().astype(np.float64)))
    return path / "x.npy"


def tensors(path: Path) -> Path:
    save_file(
        {"scale": torch.ones(3), "my rows": ROWS, "ids": torch.ones(2, 2, dtype=torch.int64)},
        path / "x.safetensors",
    )
    return path / "x.safetensors"


def pt(path: Path, content: Any = ROWS, **options: Any) -> Path:
    torch.save(content, path / "x.pt", **options)
    return path / "x.pt"


FILES: dict[str, Callable[[Path], Path]] = {
    "npy": npy,
    "npy, columns first, float64": fortran,
    "safetensors": tensors,
    "pt": pt,
    "pt of a dictionary": lambda path: pt(path, {"n": 3, "x": ROWS, "mean": ROWS[0]}),
    "pt of an old torch": lambda path: pt(path, _use_new_zipfile_serialization=False),
}


@pytest.mark.parametrize("kind", FILES)
def test_every_row_is_trained_on_or_held_out(kind: str, tmp_path: Path) -> None:
    module = cached(FILES[kind](tmp_path), validation_vectors=10**6)
    n_rows = module.source.n_rows
    assert n_rows == N - round(0.05 * N)
    train = module.source.gather(np.arange(n_rows))
    held_out = HiddenStates.concatenate(list(module.val_dataloader()))
    found = torch.cat([train.vectors, held_out.vectors])
    order = [np.lexsort(rows.numpy().T) for rows in (found, ROWS)]
    assert torch.equal(found[order[0]], ROWS[order[1]])
    for rows in (train, held_out):
        assert set(rows.layer.tolist()) == {0}
        for column in (rows.token, rows.document):
            assert set(column.tolist()) == {-1}
        assert torch.equal(rows.vectors, ROWS[rows.position])
        assert set(rows.weight.tolist()) == {1.0}


def test_sixteen_bit_vectors_are_read(tmp_path: Path) -> None:
    save_file({"x": ROWS.bfloat16()}, tmp_path / "x.safetensors")
    module = cached(tmp_path / "x.safetensors")
    rows = module.source.gather(np.arange(100)).vectors
    assert rows.dtype == torch.float32
    assert {tuple(row.tolist()) for row in rows} <= {
        tuple(row.tolist()) for row in ROWS.bfloat16().float()
    }


def test_what_is_held_out_does_not_depend_on_the_seed(tmp_path: Path) -> None:
    path = npy(tmp_path)
    held_out = [next(iter(cached(path, seed=seed).val_dataloader())).vectors for seed in (0, 1)]
    everything = [cached(path, seed=seed).source.gather(np.arange(50)).vectors for seed in (0, 1)]
    assert torch.equal(*everything)
    rows = [{tuple(row) for row in part.tolist()} for part in held_out]
    assert rows[0] == rows[1]
    batches = [next(iter(cached(path, seed=seed).train_dataloader())) for seed in (0, 1)]
    assert not torch.equal(batches[0].vectors, batches[1].vectors)


def test_statistics_are_those_of_the_training_rows(tmp_path: Path) -> None:
    module = cached(npy(tmp_path))
    rows = module.source.gather(np.arange(module.source.n_rows)).vectors
    assert torch.allclose(module.statistics.mean[0], rows.mean(0), atol=1e-5)
    x = module.normalization(rows, torch.zeros(len(rows), dtype=torch.int64))
    assert float(x.square().sum(1).mean()) == pytest.approx(1, abs=1e-5)


def test_the_layer_can_be_said(tmp_path: Path) -> None:
    module = cached(npy(tmp_path), layers=[4])
    assert module.layers == (4,)
    assert set(next(iter(module.train_dataloader())).layer.tolist()) == {4}
    for layers in ([0, 1], "every_second", [-1], []):
        with pytest.raises(InputError, match=r"hidden_states\.layers"):
            cached(npy(tmp_path), layers=layers)


def test_without_held_out_rows_there_is_no_validation(tmp_path: Path) -> None:
    module = cached(npy(tmp_path), validation_fraction=0.0)
    assert module.val_dataloader() == []
    assert module.source.n_rows == N
    assert not module.text.validation_fraction


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_vector_that_is_not_finite_is_named(value: float, tmp_path: Path) -> None:
    rows = ROWS.clone()
    rows[417, 3] = value
    with pytest.raises(InputError, match=r"Vector 417 of .*x\.npy is not finite"):
        list(cached(npy(tmp_path, rows), max_vectors=2000).train_dataloader())


class Hostile:
    """Runs code when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def hostile_files(path: Path) -> dict[str, bytes]:
    bad = Hostile(path / "executed")
    np.save(path / "o.npy", np.array([[bad]], dtype=object), allow_pickle=True)
    header = b'{"x":{"dtype":"F32","shape":[1000000000,1000],"data_offsets":[0,4]}}'
    numpy_header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 1000), }\n"
    np.savez(path / "x.npz", x=ROWS.numpy())
    return {
        "archive.npy": (path / "x.npz").read_bytes(),
        "cut header.npy": b"\x93NUMPY\x01\x00" + struct.pack("<H", 30) + numpy_header[:30],
        "words.pt": b"hello world\n" * 10,
        "no pickle.pt": b"\x80\x02" + b"junk" * 10,
        "pickle.pt": pickle.dumps(bad),
        "objects.npy": (path / "o.npy").read_bytes(),
        "pickle.npy": pickle.dumps(bad),
        "pickle.safetensors": pickle.dumps(bad),
        "long header.safetensors": struct.pack("<Q", 1 << 60) + b"{}",
        "large.safetensors": struct.pack("<Q", len(header)) + header + bytes(4),
        "large.npy": b"\x93NUMPY\x01\x00" + struct.pack("<H", len(numpy_header)) + numpy_header,
        "empty.npy": b"",
        "empty.pt": b"",
        "empty.safetensors": b"",
        "text.npy": b"1.0 2.0",
        "text.pt": b"1.0 2.0",
    }


def test_nothing_in_a_file_is_ever_run_and_every_bad_file_is_an_error_of_ours(
    tmp_path: Path,
) -> None:
    for name, data in hostile_files(tmp_path).items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=name):
            read_vectors(tmp_path / name)
    torch.save({"x": ROWS, "bad": Hostile(tmp_path / "executed")}, tmp_path / "x.pt")
    with pytest.raises(InputError, match="no file of tensors"):
        read_vectors(tmp_path / "x.pt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "content",
    [
        {"a": ROWS, "b": ROWS},
        {"a": ROWS[0]},
        ROWS.long(),
        ROWS[None],
        ROWS[:0],
        ROWS.to_sparse(),
        ROWS.to("meta"),
        OrderedDict(a="text"),
        3,
    ],
)
def test_what_is_no_single_array_of_vectors_is_refused(content: object, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x\.pt must hold one array"):
        read_vectors(pt(tmp_path, content))


def test_a_path_that_is_nothing_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("1,2")
    for name, pattern in (
        ("x.npy", "is not there"),
        ("x.csv", "neither a folder"),
        ("folder", "is not there"),
    ):
        with pytest.raises(InputError, match=pattern):
            CachedDataModule(CachedOptions(str(tmp_path / name)))
    with pytest.raises(InputError, match="not a finished cache"):
        CachedDataModule(CachedOptions(str(tmp_path)))


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"validation_vectors": -1},
        {"validation_fraction": 1.0},
        {"on_damage": "ignore"},
        {"verify": "yes"},
        {"prefetch": "always"},
        {"normalization": "whiten"},
        {"layers": 3},
        {"token_weight_exponent": -1.0},
    ],
)
def test_an_option_out_of_its_range_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        CachedOptions("x.npy", **options)
    with pytest.raises(InputError, match=r"hidden_states\.path"):
        CachedOptions("")


@pytest.mark.parametrize("n", [6_000, 60_000])
def test_some_of_the_held_out_rows_are_chosen_however_many_there_are(
    n: int, tmp_path: Path
) -> None:
    module = cached(npy(tmp_path, torch.randn(n, WIDTH)), validation_vectors=10**6)
    chosen = [module.some_held_out(rows) for rows in module.val_dataloader()]
    assert SOME <= int(torch.cat(chosen).sum()) < 2 * SOME


def test_a_parameter_is_read_as_a_tensor_without_a_gradient(tmp_path: Path) -> None:
    torch.save({"x": torch.nn.Parameter(ROWS)}, tmp_path / "x.pt")
    found = read_vectors(tmp_path / "x.pt")
    assert not found.requires_grad
    assert torch.equal(found, ROWS)
