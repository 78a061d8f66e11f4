"""The same run again, or in many pieces: the whole last checkpoint is the same."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dictlearn.errors import Stopped
from dictlearn.hidden_states import HiddenStateDataModule
from dictlearn.storage.committed import newest_whole
from tests.resume.interrupted import (
    Interrupt,
    assert_same_end,
    equal,
    final_state,
    go,
    history,
)
from tests.resume.processes import BY_TORCHRUN, SMALL, TWO, launched
from tests.small_run import BATCH, STEPS, small_data

Make = Callable[[], HiddenStateDataModule]


@pytest.fixture(scope="module")
def make(minilm_folder: Path, text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    place = tmp_path_factory.mktemp("data")
    return lambda: small_data(minilm_folder, text_folder, place, batch_size=BATCH, steps=STEPS)


def test_the_same_seed_gives_the_same_checkpoint(make: Make, tmp_path: Path) -> None:
    """C11 the same run twice: every tensor and number of the last checkpoint is the same."""
    for name in ("one", "other"):
        go(tmp_path / name, make())
    assert len(final_state(tmp_path / "one")) > 50
    assert_same_end(tmp_path / "one", tmp_path / "other", equal)
    assert history(tmp_path / "one") == history(tmp_path / "other")


@pytest.mark.slow
def test_a_run_stopped_after_every_step_ends_bit_equal(make: Make, tmp_path: Path) -> None:
    """C10 a run is stopped after every single step: it ends bit-identical to one never stopped."""
    go(tmp_path / "straight", make())
    for step in range(1, STEPS):
        with pytest.raises(Stopped, match=f"after step {step}"):
            go(tmp_path / "stopped", make(), Interrupt(step))
    go(tmp_path / "stopped", make())
    assert_same_end(tmp_path / "straight", tmp_path / "stopped", equal)
    assert history(tmp_path / "straight") == history(tmp_path / "stopped")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_starts_the_ranks_again_and_the_run_goes_on(
    rank: int, tmp_path: Path, text_folder: Path
) -> None:
    """C12 a rank is killed under torchrun --standalone --max-restarts=1: it starts all again, they
    go on from the last checkpoint, and the end is that of a run that nobody disturbed.
    """
    common = [*SMALL, *TWO, f"text.path={text_folder}", "callbacks.checkpoint.every_steps=5"]
    by = [*BY_TORCHRUN, "--standalone", "--max-restarts=1"]
    with launched(tmp_path, [*common, "hydra.run.dir=straight"], by) as run:
        assert run.end(300) == 0, run.said()
    with launched(tmp_path, [*common, "hydra.run.dir=killed"], by) as run:
        run.wait_for("step 14 of")
        while newest_whole(tmp_path / "killed" / "checkpoints") is None:
            time.sleep(0.05)
        os.kill(run.ranks()[rank], signal.SIGKILL)
        assert run.end(300) == 0, run.said()
        assert run.said().count("Going on from step") == 1, run.said()
    assert history(tmp_path / "straight") == history(tmp_path / "killed")
    same: dict[str, Any] = final_state(tmp_path / "killed")
    for name, value in final_state(tmp_path / "straight").items():
        assert ".config." in name or equal(value, same[name]), name
