"""Real runs, asked to stop and gone on with by the line that they end with."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import dictlearn
from dictlearn.storage.committed import committed
from dictlearn.storage.saved import load
from tests.resume.interrupted import equal, final_state, history
from tests.resume.processes import SMALL, TWO, launched


@pytest.mark.parametrize(
    ("processes", "number", "rank"),
    [([], signal.SIGINT, 0), (TWO, signal.SIGTERM, 1)],
    ids=["one process", "two processes"],
)
def test_a_stopped_run_goes_on_by_the_words_it_ends_with(
    processes: list[str], number: signal.Signals, rank: int, tmp_path: Path, text_folder: Path
) -> None:
    """C4, C5 SIGINT to a run of one process, SIGTERM to the second of two: exit 75, resumed
    bit-identical by the printed line.
    """
    command = [*SMALL, *processes, f"text.path={text_folder}"]
    with launched(tmp_path, [*command, "hydra.run.dir=straight"]) as run:
        assert run.end(300) == 0, run.said()
    with launched(tmp_path, [*command, "hydra.run.dir=stopped"]) as run:
        run.wait_for("step 14 of")
        os.kill(run.ranks()[rank], number)
        assert run.end(60) == 75, run.said()
        line = run.said().splitlines()[-1]
    assert f"stopped by {number.name} after step" in line
    assert "Traceback" not in run.said()
    newest = committed(tmp_path / "stopped" / "checkpoints")[0]
    assert 0 < newest.step < 59
    atoms = dictlearn.load(tmp_path / "stopped").dictionary.atoms  # written at every checkpoint
    saved = torch.load(newest.path, weights_only=True)["state_dict"]["dictionary.atoms"]
    assert torch.equal(atoms, saved)
    with launched(tmp_path, line.partition("python train.py ")[2].split()) as run:
        assert run.end(300) == 0, run.said()
        assert f"Going on from step {newest.step}" in run.said()
    assert history(tmp_path / "straight") == history(tmp_path / "stopped")
    same = final_state(tmp_path / "stopped")
    for name, value in final_state(tmp_path / "straight").items():
        assert ".config." in name or equal(value, same[name]), name


def test_a_run_goes_on_by_itself_with_the_options_it_began_with_only(
    tmp_path: Path, text_folder: Path
) -> None:
    """C12 another option is given in the directory of a run that was stopped: refused by its name;
    the options of before are kept and go on until others are given by resume=true, and a finished
    run is not done again.
    """
    command = [*SMALL, f"text.path={text_folder}", "inference=unrolled", "update=adam"]
    command.append("hydra.run.dir=out")
    with launched(tmp_path, command) as run:
        run.wait_for("step 14 of")
        os.kill(run.ranks()[0], signal.SIGTERM)
        assert run.end(60) == 75, run.said()
    with launched(tmp_path, [*command, "prox.k=9"]) as run:
        assert run.end(60) == 2, run.said()
        assert "began with prox.k=8 and now has 9" in run.said()
    kept = tmp_path / "out" / ".hydra" / "config.yaml"
    assert OmegaConf.load(kept).prox.k == 8
    with launched(tmp_path, ["run=out", "resume=true", "prox.k=9"]) as run:
        run.wait_for("step 28 of")
        os.kill(run.ranks()[0], signal.SIGTERM)
        assert run.end(60) == 75, run.said()
    with launched(tmp_path, ["run=out", "resume=true"]) as run:
        assert run.end(120) == 0, run.said()
        assert "Going on from step" in run.said()
    assert OmegaConf.load(kept).prox.k == 9
    assert getattr(load(tmp_path / "out").prox, "k", None) == 9
    figures = (tmp_path / "out" / "metrics.json").read_bytes()
    with launched(tmp_path, command) as run:
        assert run.end(60) == 2, run.said()
        assert "already holds a run" in run.said()
    assert OmegaConf.load(kept).prox.k == 9
    with launched(tmp_path, [*command, "prox.k=9"]) as run:
        assert run.end(60) == 0, run.said()
        assert "This run has finished" in run.said()
        assert "Held-out text" in run.said()
    assert (tmp_path / "out" / "metrics.json").read_bytes() == figures


AT_THE_END = """
import os, signal, sys
sys.path.insert(0, os.path.dirname(sys.argv[1]))  # that of train.py
from dictlearn import cli, training
from dictlearn.learner import DictionaryLearner

def strike():
    os.kill(os.getpid(), signal.SIGTERM)

def leave(*parts, then=training._leave):
    strike()
    then(*parts)

def validated(learner, then=DictionaryLearner.on_validation_epoch_end):
    if learner.trainer.state.fn == "validate":
        strike()
    then(learner)

if sys.argv[2] == "results":
    training._leave = leave
else:
    DictionaryLearner.on_validation_epoch_end = validated
cli.train(sys.argv[3:])
"""


@pytest.mark.parametrize("while_", ["results", "validation"])
def test_a_run_asked_to_stop_after_its_last_step_comes_to_its_end(
    while_: str, tmp_path: Path, text_folder: Path
) -> None:
    """C4 SIGTERM after the last step, while it validates or writes the results: they are written,
    and the run ends as if nobody had asked.
    """
    command = [while_, *SMALL, f"text.path={text_folder}", "max_vectors=4096", "hydra.run.dir=out"]
    command += ["inference=unrolled", "update=adam", "trainer.val_check_interval=5"]
    with launched(tmp_path, command, ["-c", AT_THE_END]) as run:
        assert run.end(120) == 0, run.said()
    assert "val/fvu" in (tmp_path / "out" / "metrics.json").read_text()
    assert load(tmp_path / "out").dictionary.n_atoms == 256
