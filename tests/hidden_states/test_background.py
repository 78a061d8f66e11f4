"""The thread that reads ahead, where what it reads does not answer any more."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from dictlearn.callbacks.checkpoints import RunCheckpoints
from dictlearn.errors import InputError
from dictlearn.hidden_states import background
from dictlearn.hidden_states.extraction import Extractor
from dictlearn.storage.committed import committed
from tests.small_run import small_data, small_learner, small_trainer

SAID = "no hidden states have come: .* does not answer. Go on with run=DIR resume=true"


def test_a_reader_that_hangs_ends_the_run(
    minilm_folder: Path, text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C6 the thread that prepares the batches hangs: after a set time the run ends with a sentence,
    and what was saved is there.
    """
    extract, answer, calls = Extractor.extract, threading.Event(), 0
    came_back: list[bool] = []

    def hanging(self: Extractor, numbers: Any) -> Any:
        nonlocal calls
        calls += threading.current_thread().name == "hidden_states"
        if calls == 7:
            came_back.append(answer.wait(30))
        return extract(self, numbers)

    monkeypatch.setattr(Extractor, "extract", hanging)
    monkeypatch.setattr(background, "PATIENCE", 2.0)
    data = small_data(minilm_folder, text_folder, tmp_path, prefetch=True)
    saver = RunCheckpoints(tmp_path, every_steps=1, every_minutes=None, monitor=None)
    trainer = small_trainer(tmp_path, [saver], enable_checkpointing=True)
    with pytest.raises(InputError, match=SAID):
        trainer.fit(small_learner(data), datamodule=data)
    assert not came_back, "the run has waited for the thread"
    assert 0 < trainer.global_step < 20
    saved = committed(tmp_path / "checkpoints")[0].step
    assert 0 <= trainer.global_step - saved <= 1  # Lightning asks for a batch ahead
    answer.set()


def test_an_error_that_is_a_timeout_is_not_a_reader_that_hangs() -> None:
    def failing() -> None:
        raise TimeoutError("the disk says so")

    worker = background.Background(torch.device("cpu"))
    with pytest.raises(TimeoutError, match="the disk says so"):
        worker.submit(failing).result()
    worker.close()
    assert not worker.hangs


HUNG = """
import sys
from pathlib import Path
import torch
from dictlearn.errors import InputError
from dictlearn.hidden_states import background

background.PATIENCE = 0.3
worker = background.Background(torch.device("cpu"))
try:
    worker.submit(Path(sys.argv[1]).read_bytes).result()
except InputError as error:
    print(error)
worker.close()
"""


@pytest.mark.slow
def test_python_ends_although_a_reader_hangs(tmp_path: Path) -> None:
    """C6 the disk that hidden states are read from hangs: nothing waits for the thread at the end
    of the process.
    """
    os.mkfifo(tmp_path / "never written")
    done = subprocess.run(
        [sys.executable, "-c", HUNG, str(tmp_path / "never written")],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "For 0.005 minutes no hidden states have come" in done.stdout
