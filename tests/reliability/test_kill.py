"""kill -9 at random moments of a real run, fifty times: it always goes on, and ends the same."""

from __future__ import annotations

import importlib
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from dictlearn import cli
from dictlearn.storage.committed import newest_whole
from tests.resume.interrupted import equal, final_state, history
from tests.resume.processes import SMALL

KILLS = 50


def attempt(overrides: list[str], seconds: float | None) -> bool:
    """Run in a process of its own and kill it after some seconds; tell whether it finished."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            torch.set_num_threads(1)  # the pool of the parent is void, which threads must not find
            cli.train(overrides)
            code = 0
        finally:
            os._exit(code)
    end = time.monotonic() + (600 if seconds is None else seconds)
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return True
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_run_killed_fifty_times_ends_as_if_it_had_not(tmp_path: Path, text_folder: Path) -> None:
    """A1 kill -9 at 50 random moments, also within a save: every time the run goes on."""
    importlib.import_module("dictlearn.training")  # once, for all that are forked
    common = [*SMALL, f"text.path={text_folder}", f"data_dir={tmp_path}"]
    common += ["callbacks.checkpoint.every_steps=1", "~callbacks.gallery"]  # saves half of its time
    assert attempt([*common, f"hydra.run.dir={tmp_path}/straight"], None)
    began = time.monotonic()
    assert attempt([*common, f"hydra.run.dir={tmp_path}/timed"], None)
    whole = time.monotonic() - began
    chance, kills, rounds = random.Random(0), 0, 0
    while kills < KILLS:
        out, last = tmp_path / f"killed-{rounds}", -1
        rounds += 1
        finished = False
        while not finished:
            finished = attempt([*common, f"hydra.run.dir={out}"], chance.uniform(0.2, 0.8) * whole)
            kills += not finished
            found = newest_whole(out / "checkpoints")
            assert found is not None or last == -1
            step = -1 if found is None else found.step
            assert step >= last, "steps were lost that had been saved"
            last = step
        assert history(tmp_path / "straight") == history(out)
        same = final_state(out)
        for name, value in final_state(tmp_path / "straight").items():
            assert ".config." in name or equal(value, same[name]), name
