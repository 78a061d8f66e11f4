"""A disk that is full, or cannot be written at all."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dictlearn import training
from dictlearn.callbacks.checkpoints import RunCheckpoints
from dictlearn.errors import InputError
from dictlearn.hidden_states import HiddenStateDataModule
from dictlearn.resuming import checkpoint_to_go_on_from
from dictlearn.storage import committed as committed_files
from dictlearn.storage.atomic import write_text
from dictlearn.storage.committed import Committed, committed, newest_whole
from tests.integration.test_mistakes import FAST
from tests.resume.interrupted import history
from tests.resume.processes import SMALL, launched
from tests.small_run import small_data, small_learner, small_trainer


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB: two checkpoints fit, and no third beside another megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)],
        check=False,
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("patient", [True, False])
def test_a_full_disk_costs_checkpoints_and_not_the_run(
    patient: bool,
    small_disk: Path,
    minilm_folder: Path,
    text_folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A3 a full disk in the middle of a save: earlier checkpoints stay, the run goes on; 3 times
    in a row end it.
    """
    caplog.set_level(logging.WARNING)
    data = small_data(minilm_folder, text_folder, tmp_path, steps=12)
    saver = RunCheckpoints(small_disk, every_steps=2, every_minutes=None, monitor=None)
    ballast = small_disk / "ballast"

    def fill() -> None:
        if committed(saver.folder)[0].step == 4 and not ballast.exists():
            ballast.write_bytes(bytes(os.statvfs(small_disk).f_bavail * 4096 - 65536))

    saver.also.append(fill)
    trainer = small_trainer(tmp_path, [saver], enable_checkpointing=True)
    learner = small_learner(data, n_atoms=192)
    if patient:
        saver.max_failures = 99
        trainer.fit(learner, datamodule=data)
        assert trainer.global_step == 12
    else:
        with pytest.raises(InputError, match="3 checkpoints in a row could not be written"):
            trainer.fit(learner, datamodule=data)
    said = [record.getMessage() for record in caplog.records if "could not" in record.getMessage()]
    assert len(said) >= 3
    assert all(
        "No space left" in line and "MB are free" in line and ".ckpt" in line for line in said
    )
    found = newest_whole(saver.folder)
    assert found is not None
    assert found.step == 4
    assert len(committed(saver.folder)) == 2
    assert not list(saver.folder.glob(".*"))
    ballast.unlink()
    assert checkpoint_to_go_on_from(small_disk, True) is not None


def test_failures_are_counted_in_a_row(
    minilm_folder: Path, text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A3 two checkpoints of three cannot be written, the third can: the run goes on."""
    commit, tried = committed_files.commit, []

    def write(*given: Any) -> Committed:
        tried.append(given[1])
        if len(tried) % 3:
            raise OSError(28, "No space left on device")
        return commit(*given)

    monkeypatch.setattr(committed_files, "commit", write)
    data = small_data(minilm_folder, text_folder, tmp_path, steps=12)
    saver = RunCheckpoints(tmp_path, every_steps=1, every_minutes=None, monitor=None)
    trainer = small_trainer(tmp_path, [saver], enable_checkpointing=True)
    trainer.fit(small_learner(data), datamodule=data)
    assert trainer.global_step == 12
    assert len(tried) > 2 * saver.max_failures
    assert committed_files.committed(saver.folder)[0].step == max(tried[2::3])


def test_a_place_that_cannot_be_written_is_told_before_anything_is_loaded(
    tmp_path: Path, text_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A7 a run directory that cannot be written: one sentence, before torch is loaded."""
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")  # a line for every import
    (tmp_path / "file").write_text("in the way")
    options = [*FAST, "text=local", f"text.path={text_folder}", "hydra.run.dir=file/run"]
    with launched(tmp_path, options) as run:
        assert run.end(30) == 2
        said = run.said()
    assert "Traceback" not in said
    assert "hydra.run.dir" in said
    imported = {line.rpartition("|")[2].strip() for line in said.splitlines()}
    assert "hydra.core.config_store" in imported
    assert not imported & {"torch", "pytorch_lightning", "transformers", "datasets", "safetensors"}


def test_a_dictionary_that_cannot_be_written_costs_the_others_nothing(
    minilm_folder: Path, text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A3 the dictionary of one of several variants cannot be written: those of the others are, and
    no process waits for another.
    """
    data = small_data(minilm_folder, text_folder, tmp_path)
    first, second = small_learner(data), small_learner(data)
    asked: list[Path] = []

    def write(folder: Path, *parts: object, **options: object) -> None:
        asked.append(folder)
        if len(asked) == 1:
            raise OSError(28, "No space left on device")

    config: dict[str, object] = {"prox": {}, "inference": {}}
    monkeypatch.setattr(training, "save_dictionary", write)
    monkeypatch.setattr(training, "learners", lambda *_, **__: {"a": first, "b": second})
    monkeypatch.setattr(HiddenStateDataModule, "normalization", None, raising=False)
    for learner in (first, second):
        learner.hparams["config"] = config
    with pytest.raises(OSError, match="No space left"):
        training._save(tmp_path, first, data, {})
    assert asked == [tmp_path / "variants" / name / "dictionary" for name in "ab"]
    assert (tmp_path / "variants" / "b" / ".hydra" / "config.yaml").is_file()


def test_a_manifest_that_cannot_go_costs_a_checkpoint_and_not_the_run(
    minilm_folder: Path, text_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    data = small_data(minilm_folder, text_folder, tmp_path, steps=6)
    saver = RunCheckpoints(tmp_path, every_steps=2, every_minutes=None, monitor=None)
    (saver.folder / "step=00000004.json").mkdir(parents=True)  # no unlink takes that away
    trainer = small_trainer(tmp_path, [saver], enable_checkpointing=True)
    trainer.fit(small_learner(data), datamodule=data)
    assert trainer.global_step == 6
    assert [entry.step for entry in committed(saver.folder)] == [6, 2]
    assert "step=00000004.ckpt of about" in caplog.text


def test_the_best_is_the_best_of_those_that_could_be_written(
    minilm_folder: Path, text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = committed_files.commit

    def write(*given: Any) -> Committed:
        if given[1] == 4:
            raise OSError(28, "No space left on device")
        return commit(*given)

    monkeypatch.setattr(committed_files, "commit", write)
    data = small_data(minilm_folder, text_folder, tmp_path, steps=12)
    saver = RunCheckpoints(tmp_path, every_minutes=None, mode="max")  # the first one is the largest
    trainer = small_trainer(
        tmp_path, [saver], enable_checkpointing=True, limit_val_batches=1.0, val_check_interval=4
    )
    trainer.fit(small_learner(data), datamodule=data)
    assert [path.name for path in saver.folder.glob("best-*.ckpt")] == ["best-step=8.ckpt"]


def test_a_run_is_finished_when_the_figures_of_all_variants_are_there(
    minilm_folder: Path, text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = small_data(minilm_folder, text_folder, tmp_path)
    learner = small_learner(data)

    def failing(path: Path, text: str) -> None:
        if path.parent.name == "b":
            raise OSError(28, "No space left on device")
        write_text(path, text)

    monkeypatch.setattr(training, "write_text", failing)
    monkeypatch.setattr(training, "learners", lambda *_, **__: {"a": learner, "b": learner})
    with pytest.raises(OSError, match="No space left"):
        training._leave(tmp_path, learner, {"a/val/fvu": 0.5})
    assert (tmp_path / "variants" / "a" / "metrics.json").is_file()
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.slow
def test_a_run_with_all_that_it_writes_stands_a_full_disk(
    small_disk: Path, tmp_path: Path, text_folder: Path
) -> None:
    """A3 a disk is full while a run writes checkpoints, history, page and dictionary: one sentence
    ends it in the end, and once there is room it goes on to the same figures.
    """
    command = [*SMALL, f"text.path={text_folder}", "dictionary.n_atoms=48", "prox.k=4"]
    command += ["callbacks.checkpoint.every_steps=8", "callbacks.gallery.per_layer=2"]
    with launched(tmp_path, [*command, "hydra.run.dir=straight"]) as run:
        assert run.end(300) == 0, run.said()
    out, ballast = small_disk / "out", small_disk / "ballast"
    with launched(tmp_path, [*command, f"hydra.run.dir={out}"]) as run:
        run.wait_for("step 14 of")
        ballast.write_bytes(bytes(os.statvfs(small_disk).f_bavail * 4096))
        assert run.end(300) == 2, run.said()
        said = run.said()
    assert "Traceback" not in said
    assert "3 checkpoints in a row could not be written" in said
    ballast.unlink()
    with launched(tmp_path, [f"run={out}", "resume=true"]) as run:
        assert run.end(300) == 0, run.said()
    assert history(tmp_path / "straight") == history(out)


def test_a_disk_that_is_full_at_the_start_is_told(small_disk: Path, text_folder: Path) -> None:
    """A3 the disk is full when a run begins: one sentence that says so."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(os.statvfs(small_disk).f_bavail * 4096))
    options = [*FAST, "text=local", f"text.path={text_folder}", f"hydra.run.dir={small_disk}/run"]
    with launched(text_folder.parent, options) as run:
        assert run.end(60) == 2
        said = run.said()
    assert "Traceback" not in said
    assert "No space left on device" in said
    assert "composed" not in said
