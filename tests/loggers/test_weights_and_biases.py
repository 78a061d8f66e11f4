import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning.utilities import rank_zero_only

from dictlearn.errors import InputError
from dictlearn.loggers import finish_loggers, log_config, wandb_options
from dictlearn.loggers.weights_and_biases import WandbRunLogger
from tests.loggers.read_offline import read_offline
from tests.loggers.tiny import CONFIG, Tiny, train, trainer, warnings_of


def test_an_offline_run_holds_config_history_histogram_and_artifact(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    environment = dict(os.environ)
    options: dict[str, Any] = {
        "mode": "offline",
        "project": "factors",
        "group": "sweep",
        "tags": ["a", "b"],
    }
    train(tmp_path, **options)
    run = read_offline(tmp_path)
    assert (run.project, run.name, run.group, run.tags) == ("factors", "first", "sweep", ["a", "b"])
    assert {key: run.config[key] for key in CONFIG} == CONFIG
    for key, steps in {"train/loss": [3, 7, 11, 15], "val/fvu": [7, 15]}.items():
        rows = [row for row in run.history if key in row]
        assert [row["trainer/global_step"] for row in rows] == steps
        assert all(isinstance(row[key], float) for row in rows)
    histograms = [row for row in run.history if "atom_usage" in row]
    assert [row["trainer/global_step"] for row in histograms] == [8, 16]
    counts, edges = (histograms[-1]["atom_usage"][key] for key in ("values", "bins"))
    assert histograms[-1]["atom_usage"]["_type"] == "histogram"
    assert (sum(counts), counts[0], counts[-1]) == (6, 2, 1)
    assert (edges[0], edges[-1], len(edges)) == (-7, 0, 71)
    (artifact,) = run.artifacts
    assert (artifact.name, artifact.type) == ("factors-of-16", "dictionary")
    assert "0.25" in artifact.metadata
    assert run.exit_codes == [0]
    # W&B itself notes there where its service listens; nothing else may change.
    assert {k: v for k, v in os.environ.items() if k != "WANDB_SERVICE"} == environment
    assert warnings_of(caplog) == []
    assert capfd.readouterr().err == ""


def test_the_files_of_the_artifact_stay_in_the_run_directory(tmp_path: Path) -> None:
    train(tmp_path, mode="offline")
    home = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert [path for path in home if path.read_bytes() == b"atoms"] == []


def test_two_jobs_of_one_process_are_two_runs(tmp_path: Path) -> None:
    for job in ("first", "second"):
        train(tmp_path / job, name=job, mode="offline")
    first, second = read_offline(tmp_path / "first"), read_offline(tmp_path / "second")
    assert (first.name, second.name) == ("first", "second")
    assert first.run_id != second.run_id
    assert len(first.history) == len(second.history)


def test_wandb_mode_decides_where_the_mode_is_auto(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    train(tmp_path / "disabled")
    assert not (tmp_path / "disabled" / "wandb").exists()
    train(tmp_path / "offline", mode="offline")
    assert len(read_offline(tmp_path / "offline").history) > 0
    assert warnings_of(caplog) == []


def test_a_machine_set_to_offline_stays_offline_without_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "settings").write_text("[default]\nmode = offline\n")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    train(tmp_path)
    assert len(read_offline(tmp_path).history) > 0
    assert warnings_of(caplog) == []


def test_nothing_is_started_before_the_first_use_nor_on_other_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = WandbRunLogger(tmp_path, mode="offline")
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    log_config([logger], CONFIG)
    logger.log_metrics({"val/fvu": 0.5}, 1)
    logger.experiment.log({"val/fvu": 0.5})
    finish_loggers([logger])
    assert list(tmp_path.iterdir()) == []


def test_a_spawned_process_goes_on_with_the_run_of_its_parent(tmp_path: Path) -> None:
    logger = WandbRunLogger(tmp_path, mode="offline")
    log_config([logger], CONFIG)
    copy = pickle.loads(pickle.dumps(logger))
    copy.log_metrics({"val/fvu": 0.5}, 1)
    finish_loggers([logger])
    assert read_offline(tmp_path).history[-1]["val/fvu"] == 0.5


def test_forked_ranks_go_on_with_the_run_of_their_parent_and_only_rank_0_logs(
    tmp_path: Path,
) -> None:
    logger = WandbRunLogger(tmp_path, mode="offline")
    job = trainer([logger], tmp_path, strategy="ddp_fork", devices=2)
    log_config(job.loggers, CONFIG)
    job.fit(Tiny())
    finish_loggers(job.loggers)
    run = read_offline(tmp_path)
    steps = [row["trainer/global_step"] for row in run.history if "val/fvu" in row]
    assert steps == [7]
    assert run.config["prox"] == CONFIG["prox"]


def test_a_failed_run_is_marked_as_failed(tmp_path: Path) -> None:
    logger = WandbRunLogger(tmp_path, mode="offline")
    log_config([logger], CONFIG)
    finish_loggers([logger], failed=True)
    logger.log_metrics({"val/fvu": 0.5}, 1)
    run = read_offline(tmp_path)
    assert (run.exit_codes, run.history) == ([1], [])


def test_a_resumed_run_goes_on_under_its_id(tmp_path: Path) -> None:
    assert wandb_options.earlier_run(tmp_path) is None
    for name in ("run-20260101_000000-first", "offline-run-20260103_000000-third"):
        (tmp_path / "wandb" / name).mkdir(parents=True)
    (tmp_path / "wandb" / "run-20260102_000000-second").mkdir()
    assert wandb_options.earlier_run(tmp_path) == "third"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"mode": "onlin"}, "Did you mean 'online'?"),
        ({"project": "a/b"}, "logger.wandb.project=a/b"),
        ({"tags": [65 * "t"]}, "logger.wandb.tags"),
        ({"upload_seconds": 0}, "logger.wandb.upload_seconds=0"),
    ],
)
def test_what_wandb_would_refuse_is_told_at_once(
    options: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as error:
        WandbRunLogger(tmp_path, **options)
    assert told in str(error.value)


def test_a_wrong_wandb_mode_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "on")
    with pytest.raises(InputError, match="WANDB_MODE=on is not one of"):
        WandbRunLogger(tmp_path)


def test_numbers_and_single_words_of_the_command_line_are_names(tmp_path: Path) -> None:
    options: dict[str, Any] = {"project": 2021, "group": 7, "tags": "paper"}
    train(tmp_path, name=5, mode="offline", **options)  # type: ignore[arg-type]
    run = read_offline(tmp_path)
    assert (run.project, run.name, run.group, run.tags) == ("2021", "5", "7", ["paper"])
