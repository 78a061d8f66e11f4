"""A cache made by somebody who means harm: no code in it runs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from dictlearn.errors import InputError
from dictlearn.hidden_states.cache import manifest as manifests
from tests.hidden_states.cache.conftest import MakeCache
from tests.hidden_states.cache.test_damage import read_all
from tests.hidden_states.conftest import Written
from tests.reliability.hostile import payloads

KINDS = ("train", "validation", "files")


@pytest.fixture(scope="module")
def small(make_cache: MakeCache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "cache"
    make_cache(folder, Written(12, validation_fraction=0.3), shard_vectors=500)
    return folder


def forge(folder: Path, name: str, payload: bytes) -> None:
    """Put something else in the place of a file of a cache, with a manifest that fits."""
    (folder / name).write_bytes(payload)
    found = manifests.read(folder)

    def fitting(entry: Any) -> Any:
        if entry.file != name:
            return entry
        return entry._replace(**manifests.stored(folder, name)._asdict())

    parts: dict[str, Any] = {key: tuple(map(fitting, getattr(found, key))) for key in KINDS}
    manifests.write(folder, found._replace(**parts))


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickle_in_any_file_of_a_cache_is_never_executed(
    kind: str, small: Path, tmp_path: Path
) -> None:
    """E1 a file of a cache is a pickle and the manifest fits: one sentence, never executed."""
    marker = tmp_path / "marker"
    for entry in getattr(manifests.read(small), kind):
        for number, payload in enumerate(payloads(marker)):
            folder = shutil.copytree(small, tmp_path / f"{number} {entry.file}")
            forge(folder, entry.file, payload)
            with pytest.raises(InputError) as told:
                read_all(folder)
            assert "\n" not in str(told.value)
            assert not marker.exists()
            shutil.rmtree(folder)
