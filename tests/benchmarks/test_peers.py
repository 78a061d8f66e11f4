from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from benchmarks import peers
from benchmarks.measure import training_order


@dataclass(frozen=True)
class Fake(peers.Peer):
    @property
    def worker(self) -> Path:
        return Path(__file__).parent / "fake_worker.py"


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[peers.Worker]:
    """A worker of a peer whose environment is this one."""
    place = tmp_path_factory.mktemp("data")
    home = peers.environments(place) / "fake"
    home.mkdir(parents=True)
    (home / "installed.json").write_text("[]")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(peers.PEERS, "fake", Fake("fake", ()))
        patch.setattr(peers, "_python", lambda _: Path(sys.executable))
        with peers.Worker("fake", place) as process:
            yield process


def test_every_peer_has_a_worker() -> None:
    for peer in peers.PEERS.values():
        assert peer.worker.is_file()


def test_a_peer_that_could_not_be_installed_says_why_and_is_not_tried_again(data: Path) -> None:
    with pytest.raises(peers.MissingPeerError, match="no network in tests"):
        peers.Worker("sae-lens", data)


def test_nothing_is_installed_unless_it_may_be(tmp_path: Path) -> None:
    with pytest.raises(peers.MissingPeerError, match="not installed"):
        peers.Worker("sae-lens", tmp_path, install=False)
    assert not peers.environments(tmp_path).exists()


def test_the_table_of_peers_says_what_is_missing(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peers.main(["--data", str(data)])
    printed = capsys.readouterr().out
    assert printed.count("no network in tests") == len(peers.PEERS)


def test_a_worker_answers_tasks_and_survives_a_failing_one(worker: peers.Worker) -> None:
    assert worker.versions["torch"]
    with pytest.raises(RuntimeError, match="KeyError"):
        worker.call("no such task")
    assert worker.call("versions", threads=1) == worker.versions


def test_a_worker_trains_in_the_order_given_and_measures_its_error(
    worker: peers.Worker, tmp_path: Path
) -> None:
    rows = np.random.default_rng(0).standard_normal((300, 6)).astype(np.float32)
    rows -= rows.mean(0)
    np.save(tmp_path / "x.npy", rows)
    found = worker.call(
        "train",
        vectors=str(tmp_path / "x.npy"),
        held=str(tmp_path / "x.npy"),
        out=str(tmp_path / "out.npz"),
        n_vectors=450,
        batch=50,
        seed=0,
        device="cpu",
        evaluate=[4],
    )
    assert found["fvu@4"] == pytest.approx(0.25, rel=1e-4)  # half of every row is left
    assert found["l0@4"] == pytest.approx(float((rows > 1e-6).sum(1).mean()))
    assert found["silent@4"] == 0.0
    assert found["cpu"] > 0
    assert np.array_equal(np.load(tmp_path / "out.npz")["atoms"], 0.5 * np.eye(6))


def test_steps_are_timed_one_by_one(worker: peers.Worker, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((20, 6), dtype=np.float32))
    started = worker.call("start", vectors=str(tmp_path / "x.npy"), batch=8, device="cpu")
    found = worker.call("steps", n=5)
    assert len(found["cpu"]) == len(found["wall"]) == 5
    assert found["peak_bytes"] >= started["started"] > 1e6


def test_the_training_order_is_whole_passes_over_the_rows() -> None:
    order = training_order(10, 25, seed=3)
    assert len(order) == 25
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
    assert list(order[:10]) != list(order[10:20])
    assert list(order) == list(training_order(10, 25, seed=3))
