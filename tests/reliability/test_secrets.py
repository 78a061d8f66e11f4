"""What the environment keeps secret is in no file of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from dictlearn import cli
from dictlearn.configuration import redacted
from tests.integration.test_mistakes import FAST

SECRETS = {
    "HF_TOKEN": "hf_planted_one_0123456789",
    "WANDB_API_KEY": "planted2" * 5,
    "AWS_SECRET_ACCESS_KEY": "planted-three-0123456789",
    "MY_PASSWORD": "planted-four-0123456789",
}


@pytest.mark.slow
def test_no_secret_of_the_environment_is_in_any_file_of_a_run(
    tmp_path: Path,
    text_folder: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """E7 keys and tokens are in the environment, one of them also in an option by ${oc.env:...}:
    no file of the run holds them, nor does what is printed.
    """
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    cli.train(
        [
            *(entry for entry in FAST if entry != "callbacks=none"),
            *("logger=[csv,wandb]", "text=local", f"text.path={text_folder}", "prox.k=8"),
            *("inference=unrolled", "prox=topk", "hydra.run.dir=out"),
            *("~callbacks.gallery", "max_vectors=2048", "text.max_documents=8"),
            *("hidden_states.validation_vectors=512", "hidden_states.statistics_tokens=512"),
            "logger.wandb.tags=['${oc.env:MY_PASSWORD}']",
        ]
    )
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) > 8
    said = "".join(capfd.readouterr())
    for name, secret in SECRETS.items():
        assert secret not in said
        found = [path for path in files if secret.encode() in path.read_bytes()]
        # A tag is what the user sends to W&B himself.
        assert [path for path in found if "wandb" not in path.parts] == [], name
        if name != "MY_PASSWORD":
            assert found == []


def test_a_secret_is_replaced_by_its_name_at_any_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    """E7 an option holds a secret of the environment: what is saved has its name instead."""
    monkeypatch.setenv("SOME_TOKEN", "abcdef123")
    monkeypatch.setenv("SHORT_KEY", "ab")
    node = {"a": [{"b": "https://user:abcdef123@host"}], "c": 3, "ab": "ab"}
    assert redacted(node) == {**node, "a": [{"b": "https://user:<SOME_TOKEN>@host"}]}
