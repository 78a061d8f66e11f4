"""An artefact is read back bit by bit, or refused; nothing in it is ever executed."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dictlearn.errors import InputError
from dictlearn.storage import artifact


class Hostile:
    """A pickle that makes a file when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    matrix = torch.randn(5, 7, generator=draw)
    return {
        "atoms": matrix,
        "transposed": matrix.T,
        "steps": torch.tensor(0.5),
        "layers": torch.tensor([0, 3]),
        "half": matrix.bfloat16(),
        "empty": torch.empty(0, 7),
        "special": torch.tensor([torch.inf, -0.0, 1e-45]),
    }


@pytest.fixture
def folder(tmp_path: Path, tensors: dict[str, Tensor]) -> Path:
    artifact.write(tmp_path / "run" / "dictionary", tensors, {"layers": [0, 3], "name": "größe"})
    return tmp_path / "run" / "dictionary"


def forge(folder: Path, data: bytes) -> None:
    """Put other bytes in the place of the tensors, with a digest that fits them."""
    (folder / artifact.TENSORS).write_bytes(data)
    change(folder, sha256=hashlib.sha256(data).hexdigest())


def change(folder: Path, **values: object) -> None:
    config = json.loads((folder / artifact.CONFIG).read_text(encoding="utf-8"))
    (folder / artifact.CONFIG).write_text(json.dumps(config | values))


def test_tensors_and_config_come_back_bit_by_bit(folder: Path, tensors: dict[str, Tensor]) -> None:
    found, config = artifact.read(folder)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        raw = [entry.contiguous().flatten().view(torch.uint8) for entry in (found[name], tensor)]
        assert torch.equal(raw[0], raw[1]), name
    assert config["layers"] == [0, 3]
    assert config["name"] == "größe"
    assert config["format"] == artifact.FORMAT


def test_it_is_only_data_that_any_program_can_read(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [artifact.CONFIG, artifact.TENSORS]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    data = (folder / "dictionary.safetensors").read_bytes()
    assert config["sha256"] == hashlib.sha256(data).hexdigest()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header["atoms"]["shape"] == [5, 7]


def test_writing_again_replaces_both(folder: Path) -> None:
    artifact.write(folder, {"atoms": torch.ones(2)}, {"layers": [1]})
    found, config = artifact.read(folder)
    assert list(found) == ["atoms"]
    assert config["layers"] == [1]


def test_new_tensors_beside_the_config_of_before_are_read_with_theirs(folder: Path) -> None:
    """A1 kill -9 between the two files of a dictionary: it is the new one."""
    before = (folder / artifact.CONFIG).read_bytes()
    artifact.write(folder, {"atoms": torch.ones(2)}, {"layers": [1]})
    whole = artifact.read(folder)
    (folder / artifact.CONFIG).write_bytes(before)
    found, config = artifact.read(folder)
    assert torch.equal(found["atoms"], torch.ones(2))
    assert config == {key: value for key, value in whole[1].items() if key != "sha256"}


def test_every_bit_counts_also_beside_the_config_of_another_moment(folder: Path) -> None:
    """A4 a bit of a saved dictionary flips, its config is of another moment: found all the same."""
    change(folder, sha256="of another moment")
    data = (folder / artifact.TENSORS).read_bytes()
    tensors, config = artifact.read(folder)
    refused = 0
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        (folder / artifact.TENSORS).write_bytes(flipped)
        try:
            found, about = artifact.read(folder)
        except InputError as error:
            refused += "is damaged" in str(error)
        else:  # a space between two words of the header became another kind of space
            assert about == config
            assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert refused > 0.95 * len(data)


def test_it_is_found_by_its_run_directory_and_by_its_own(folder: Path) -> None:
    assert artifact.find(folder) == folder
    assert artifact.find(str(folder.parent)) == folder


@pytest.mark.parametrize("missing", ["everything", artifact.CONFIG, artifact.TENSORS])
def test_a_run_that_did_not_finish_has_none(missing: str, folder: Path) -> None:
    path = folder if missing != "everything" else folder / "elsewhere"
    if missing != "everything":
        (folder / missing).unlink()
    with pytest.raises(InputError, match=r"There is no trained dictionary at .*run directory"):
        artifact.find(path)


@pytest.mark.parametrize("place", [0, 60, -1])
def test_a_flipped_bit_anywhere_in_the_tensors_is_noticed(place: int, folder: Path) -> None:
    """A4 a bit of a saved dictionary flips: found by its digest, in one sentence."""
    data = bytearray((folder / artifact.TENSORS).read_bytes())
    data[place] ^= 1
    (folder / artifact.TENSORS).write_bytes(data)
    with pytest.raises(InputError, match="is damaged: "):
        artifact.read(folder)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_file_is_noticed_even_if_its_digest_was_adapted(
    kept: int, folder: Path
) -> None:
    """A4, E6 a saved dictionary is truncated, its digest adapted: refused in one sentence."""
    data = (folder / artifact.TENSORS).read_bytes()[:kept]
    (folder / artifact.TENSORS).write_bytes(data)
    with pytest.raises(InputError, match="is damaged: "):
        artifact.read(folder)
    forge(folder, data)
    with pytest.raises(InputError, match="is damaged"):
        artifact.read(folder)


@pytest.mark.parametrize("number", [2, 17, "1", None])
def test_a_format_of_another_version_is_refused_with_both_numbers(
    number: object, folder: Path
) -> None:
    """E9 a dictionary of a newer version: one sentence with both versions."""
    change(folder, format=number)
    with pytest.raises(InputError, match=rf"has format {number}, this version reads 1.*update"):
        artifact.read(folder)


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"\xff\xfe", b"null"])
def test_a_config_that_is_no_mapping_is_refused(text: bytes, folder: Path) -> None:
    (folder / artifact.CONFIG).write_bytes(text)
    with pytest.raises(InputError, match=r"config\.json is damaged"):
        artifact.read(folder)


def test_a_hostile_pickle_in_the_place_of_the_tensors_is_never_executed(
    folder: Path, tmp_path: Path
) -> None:
    """E1 a pickle in the place of the tensors of a dictionary: never executed."""
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps(Hostile(marker)))
    assert marker.exists()  # it is hostile indeed
    marker.unlink()
    in_a_checkpoint = tmp_path / "hostile.pt"
    torch.save({"atoms": Hostile(marker)}, in_a_checkpoint)
    for data in (pickle.dumps(Hostile(marker)), in_a_checkpoint.read_bytes()):
        (folder / artifact.TENSORS).write_bytes(data)
        with pytest.raises(InputError, match="is damaged"):
            artifact.read(folder)
        forge(folder, data)
        with pytest.raises(InputError, match="is damaged"):
            artifact.read(folder)
    assert not marker.exists()
