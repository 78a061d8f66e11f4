"""Signals to real runs: one checkpoint at one step, exit code 75, and on from there."""

from __future__ import annotations

import os
import signal
import time
from itertools import product
from pathlib import Path

import pytest

from tests.resume.interrupted import equal, final_state, history
from tests.resume.processes import BY_TORCHRUN, SMALL, TWO, Launched, launched

SECONDS = 15  # on two cores that are also busy with other things; alone it is about 3


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, text_folder: Path) -> Path:
    """A working directory with text and two finished runs, of one process and of two."""
    folder = tmp_path_factory.mktemp("signals")
    (folder / "text").symlink_to(text_folder)
    return folder


TEXT = "text.path=text"


def straight(place: Path, name: str, overrides: list[str]) -> Path:
    """The run directory of the same run, never stopped."""
    if not (place / name).exists():
        with launched(place, [*SMALL, *overrides, TEXT, f"hydra.run.dir={name}"]) as run:
            assert run.end(300) == 0, run.said()
    return place / name


def strike(run: Launched, target: str, number: signal.Signals) -> None:
    run.wait_for("step 14 of")
    pids = run.ranks()
    chosen = {"launcher": [run.process.pid], "all": pids, "rank 0": pids[:1], "rank 1": pids[1:]}
    if target == "terminal":
        os.killpg(run.process.pid, number)
    else:
        for pid in chosen[target]:
            os.kill(pid, number)


WAYS = [
    *product(("launcher", "all", "rank 0", "rank 1"), (signal.SIGTERM, signal.SIGUSR1)),
    *product(("terminal", "rank 1"), (signal.SIGINT,)),
]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["script", "torchrun"])
@pytest.mark.parametrize(("target", "number"), WAYS)
def test_two_processes_stop_at_one_step(
    target: str, launcher: str, number: signal.Signals, place: Path, tmp_path: Path
) -> None:
    """C4, C5 SIGTERM or SIGUSR1 to launcher, a rank or all, Ctrl-C in the terminal: one checkpoint
    at one step, no hang.
    """
    if launcher == "torchrun" and target == "launcher" and number == signal.SIGUSR1:
        pytest.skip("torchrun itself ends by SIGUSR1, and its workers with it")
    expected = straight(place, "two", TWO)
    out = tmp_path / "out"
    by = BY_TORCHRUN if launcher == "torchrun" else []
    command = [*SMALL, *TWO, TEXT, f"hydra.run.dir={out}"]
    with launched(place, command, by) as run:
        strike(run, target, number)
        began = time.monotonic()
        code = run.end(SECONDS)
        assert time.monotonic() - began < SECONDS
        assert code == (75 if launcher == "script" else 1), run.said()
        assert run.said().count("stopped by SIG") == 1
    with launched(place, command, by) as run:  # the same arguments again go on by themselves
        assert run.end(300) == 0, run.said()
        assert "Going on from step" in run.said()
    assert history(expected) == history(out)
    same = final_state(out)
    for name, value in final_state(expected).items():
        assert ".config." in name or equal(value, same[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("hung", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_run_at_once(
    number: signal.Signals, hung: bool, place: Path, tmp_path: Path
) -> None:
    """C5 a second signal: all processes end at once, also where a rank does not answer."""
    with launched(place, [*SMALL, *TWO, TEXT, f"hydra.run.dir={tmp_path / 'out'}"]) as run:
        run.wait_for("step 14 of")
        pids = run.ranks()
        if hung:
            os.kill(pids[1], signal.SIGSTOP)
            time.sleep(1)
        os.kill(pids[0], number)
        time.sleep(0.05)
        os.kill(pids[0], number)
        assert run.end(5) in (75, 128 + number), run.said()


@pytest.mark.slow
@pytest.mark.parametrize("hung", [False, True])
def test_a_second_signal_to_the_ranks_of_torchrun(hung: bool, place: Path, tmp_path: Path) -> None:
    """C5 a second signal to a rank under torchrun: that rank ends at once, also where another one
    does not answer, and torchrun ends the others.
    """
    command = [*SMALL, *TWO, TEXT, f"hydra.run.dir={tmp_path / 'out'}"]
    with launched(place, command, BY_TORCHRUN) as run:
        run.wait_for("step 14 of")
        pids = run.ranks()
        if hung:
            os.kill(pids[1], signal.SIGSTOP)
            time.sleep(1)
        os.kill(pids[0], signal.SIGINT)
        time.sleep(0.05)
        os.kill(pids[0], signal.SIGINT)
        time.sleep(5)
        assert pids[0] not in run.alive()
        if hung:
            os.kill(pids[1], signal.SIGCONT)
        assert run.end(SECONDS) == 1, run.said()


@pytest.mark.slow
def test_a_run_without_checkpoints_does_not_end_well_by_a_signal(
    place: Path, tmp_path: Path
) -> None:
    with launched(
        place, [*SMALL, TEXT, "~callbacks.checkpoint", f"hydra.run.dir={tmp_path}"]
    ) as run:
        run.wait_for("Hidden states in memory")
        os.kill(run.process.pid, signal.SIGTERM)
        assert run.end(SECONDS) == -signal.SIGTERM
