"""A rank that dies, raises or hangs: all processes end within a stated time, with the reason."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dictlearn.storage.committed import newest_whole
from tests.fake_slurm import wait_until
from tests.resume.processes import BY_TORCHRUN, SMALL, TWO, Launched, launched

pytestmark = pytest.mark.slow
LAUNCHERS = {"script": [], "torchrun": BY_TORCHRUN}
SECONDS = 15  # on two cores that are also busy with other things; alone it is about 4
PATIENCE = 10
BY_FORCE = {"script": 0, "torchrun": 30}  # torchrun waits so long before it kills a stopped rank


@pytest.fixture
def place(tmp_path: Path, text_folder: Path) -> Path:
    (tmp_path / "text").symlink_to(text_folder)
    return tmp_path


LONG = [*SMALL, *TWO, "max_vectors=300000", "trainer.val_check_interval=20", "text.path=text"]
LONG.append("hydra.run.dir=out")


@contextmanager
def begun(place: Path, launcher: list[str], *overrides: str) -> Iterator[Launched]:
    """A run of two ranks that has saved; it also leaves a whole checkpoint."""
    with launched(place, [*LONG, *overrides], launcher) as run:
        run.wait_for("step 20 of")
        yield run
    assert newest_whole(place / "out" / "checkpoints") is not None


def told(run: Launched) -> list[str]:
    """The sentences that a run ended with."""
    return [line for line in run.said().splitlines() if line.startswith("dictlearn: ")]


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("rank", [0, 1])
def test_all_end_when_a_rank_is_killed(rank: int, launcher: str, place: Path) -> None:
    """C1 a rank is killed (kill -9, out of memory): all end in 15 s and say that one is gone, the
    checkpoint is whole.
    """
    with begun(place, LAUNCHERS[launcher]) as run:
        os.kill(run.ranks()[rank], signal.SIGKILL)
        code = run.end(SECONDS)
    assert code == (-signal.SIGKILL if (rank, launcher) == (0, "script") else 1), run.said()
    (sentence,) = told(run)
    assert "Another process of this run has ended" in sentence
    assert re.search(r"\(Connection (closed|reset) by peer", sentence)
    assert sentence.endswith(f"go on with: python train.py run={place / 'out'} resume=true")
    assert "]: Traceback" not in run.said()  # of a rank; torchrun has one of its own


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_all_end_when_a_rank_hangs(launcher: str, place: Path) -> None:
    """C3 a rank hangs (SIGSTOP): all others end within callbacks.patience.seconds and 15 s, and
    say why; torchrun then ends the one that hangs within 30 s.
    """
    options = f"callbacks.patience.seconds={PATIENCE}"
    with begun(place, LAUNCHERS[launcher], options) as run:
        stopped = run.ranks()[1]
        os.kill(stopped, signal.SIGSTOP)
        assert run.process.wait(PATIENCE + SECONDS + BY_FORCE[launcher]) == 1, run.said()
        left = [stopped] if launcher == "script" else []  # whoever stopped it lets it go
        assert run.alive() == left
    (sentence,) = told(run)
    assert "does not answer (Timed out waiting" in sentence


PROGRAM = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, os.path.dirname(sys.argv[1]))  # that of train.py
from dictlearn import cli
from dictlearn.transformer import FrozenTransformer

def hidden_states(self, *parts, then=FrozenTransformer.hidden_states):
    rank = os.environ.get("LOCAL_RANK")
    if Path(f"busy-{rank}").exists():
        Path(f"busy-{rank}").rename("busy")
        time.sleep(600)
    broken = Path(f"broken-{rank}").exists()
    return then(self, *parts) * (float("nan") if broken else 1)

FrozenTransformer.hidden_states = hidden_states
cli.train(sys.argv[2:])
"""


def program(place: Path) -> list[str]:
    """Train as train.py does, with a transformer that breaks or hangs on a rank when it is told."""
    (place / "program.py").write_text(PROGRAM)
    return [str(place / "program.py")]


def test_all_end_when_a_rank_is_killed_and_another_is_busy(place: Path) -> None:
    """C1 a rank is killed while the main one computes and does not notice: all end in 15 s, and
    say so.
    """
    with begun(place, program(place)) as run:
        (place / "busy-0").touch()
        wait_until((place / "busy").exists, 60)
        killed = run.ranks()[1]
        os.kill(killed, signal.SIGKILL)
        assert run.end(SECONDS) == -signal.SIGKILL
    assert f"Child process with PID {killed} terminated with code -9" in run.said()


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("rank", [0, 1])
def test_the_message_of_the_rank_that_failed_is_told(rank: int, launcher: str, place: Path) -> None:
    """C2 one rank alone raises, in the middle of the run: all end in 15 s, and its sentence is
    printed once, with its number.
    """
    with begun(place, [*LAUNCHERS[launcher], *program(place)]) as run:
        (place / f"broken-{rank}").touch()
        code = run.end(SECONDS)
    alone = (rank, launcher) == (0, "script")  # what the processes have in common went with it
    assert code == (2 if alone else 1), run.said()
    sentence, *others = told(run)
    whose = "rank 1: " if rank else ""
    assert sentence.startswith(f"dictlearn: {whose}hidden_states[")
    assert "is not finite in document" in sentence
    assert [line for line in others if "rank 1: Another process" not in line] == []
    assert len(others) <= alone
    assert "]: Traceback" not in run.said()


def test_what_all_ranks_raise_is_told_once(place: Path) -> None:
    """C2 all ranks raise the same: it is told once, exit code 2."""
    options = [*LONG, "callbacks.checkpoint.monitor=val/no"]
    with launched(place, options) as run:
        assert run.end(120) in (1, 2)
    assert sum("val/no" in line for line in told(run)) == 1
    assert "Traceback" not in run.said()
