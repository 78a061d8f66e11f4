"""Limits of Lightning's trainer: what they do to a run, and that it says so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dictlearn import cli

TINY = [
    *("hidden_states=cached", "path=vectors.npy", "hidden_states.batch_size=128"),
    *("dictionary.n_atoms=32", "prox=topk", "prox.k=4", "inference=autoencoder", "update=adam"),
    *("max_vectors=1280", "hydra.run.dir=run", "trainer.enable_progress_bar=false"),
]


@pytest.mark.parametrize(
    "limits",
    [
        ["+trainer.limit_train_batches=3", "trainer.val_check_interval=1.0"],  # beyond the limit
        ["+trainer.max_steps=3"],
    ],
    ids=str,
)
def test_a_run_that_a_limit_ends_is_whole_says_so_and_can_go_on(
    limits: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.random.default_rng(0).standard_normal((1000, 16)).astype(np.float32)
    np.save(tmp_path / "vectors.npy", rows)
    monkeypatch.chdir(tmp_path)
    cli.train([*TINY, *limits])
    figures = json.loads(Path("run/metrics.json").read_text())
    assert figures["train/vectors"] == 3 * 128
    assert figures["val/fvu"] < 1
    said = "The run ends after step 3 of 10, as trainer.max_time or another limit"
    assert said in Path("run/run.log").read_text()
    cli.train([*TINY, "resume=true"])
    assert json.loads(Path("run/metrics.json").read_text())["train/vectors"] == 1280
    assert Path("run/run.log").read_text().count(said) == 1
