"""A rank that dies, raises or hangs: all processes end within a stated time, with the reason."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from dictlearn.storage.committed import newest_whole
from tests.resume.processes import BY_TORCHRUN, SMALL, TWO, launched

pytestmark = pytest.mark.slow
LAUNCHERS = {"script": [], "torchrun": BY_TORCHRUN}


@pytest.fixture
def place(tmp_path: Path, text_folder: Path) -> Path:
    (tmp_path / "text").symlink_to(text_folder)
    return tmp_path


LONG = [*SMALL, *TWO, "max_vectors=300000", "trainer.val_check_interval=20", "text.path=text"]


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("rank", [0, 1])
def test_all_end_when_a_rank_is_killed(rank: int, launcher: str, place: Path) -> None:
    """C1 a rank is killed (kill -9, out of memory): all end in 30 s, the checkpoint is whole."""
    with launched(place, [*LONG, "hydra.run.dir=out"], LAUNCHERS[launcher]) as run:
        run.wait_for("step 20 of")
        os.kill(run.ranks()[rank], signal.SIGKILL)
        assert run.end(30) != 0
    assert newest_whole(place / "out" / "checkpoints") is not None


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_all_end_when_a_rank_hangs(launcher: str, place: Path) -> None:
    """C3 a rank hangs (SIGSTOP): the others end after callbacks.patience.seconds, and say why."""
    options = [*LONG, "hydra.run.dir=out", "callbacks.patience.seconds=10"]
    with launched(place, options, LAUNCHERS[launcher]) as run:
        run.wait_for("step 20 of")
        stopped = run.ranks()[1]
        os.kill(stopped, signal.SIGSTOP)
        began = time.monotonic()
        code = run.process.wait(75)
        assert code != 0
        assert time.monotonic() - began < 75
        assert "imed out" in run.said()
    assert newest_whole(place / "out" / "checkpoints") is not None


def test_the_message_of_the_rank_that_failed_is_the_last(place: Path, minilm_folder: Path) -> None:
    """C2 one rank raises: all end in 30 s, and the sentence of the culprit is printed once."""
    from tests.integration.test_mistakes import broken_copy

    broken_copy(minilm_folder, place / "nan")
    options = [*LONG, "hydra.run.dir=out", "transformer=local", "transformer.path=nan"]
    with launched(place, [*options, "transformer.dtype=float32"]) as run:
        assert run.end(120) == 2
        assert "is not finite in document" in run.said().splitlines()[-1]
