"""Command lines with a mistake in them: they run, or are one sentence; never a stack trace."""

from __future__ import annotations

import random
import re
from functools import cache
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dictlearn import cli, configuration, training
from dictlearn.configuration import build, explain, flat_keys, plain
from dictlearn.errors import InputError
from tests.test_configs import OPTIONS, PATHS, composed

VALUES = (
    *("-1", "0", "1e9", "nan", "inf", "-inf", "1e400", "true", "no", "null", "''", "abc", "[]"),
    *("[1,2]", "{}", "{a:1}", "[[]]", "0x10", "1_0", "1.5", "'x y'", "???", "'${nothing}'"),
    *("'${oc.env:NOT_THERE_AT_ALL}'", "'${seed}'", "ünïcödé", "'\\0'", "9" * 400, "-0.0"),
)
SYNTAX = ("", "==", "=[", "=(", "=}", "=a=b", " =1", "@x=1", "/y=1")
WITHOUT_MODEL = ("prox", "inference", "update", "loss", "hidden_states", "dictionary", "text")


def mutated(chance: random.Random, keys: list[str]) -> list[str]:
    """An option of some group, and a key of the config that is misspelt, or given a wrong value."""
    option = chance.choice(OPTIONS)
    key = chance.choice(keys)
    kind = chance.choice(("value", "value", "value", "key", "option", "syntax", "remove"))
    if kind == "value":
        return [option, f"{key}={chance.choice(VALUES)}"]
    if kind == "key":
        place = chance.randrange(len(key))
        return [option, f"{key[:place]}{chance.choice('xyz.')}{key[place + 1 :]}=1"]
    if kind == "option":
        return [f"{option}{chance.choice('xyz')}"]
    if kind == "remove":
        return [option, f"~{key}"]
    return [
        option,
        key + chance.choice(("", "==", "=[", "=(", "=}", "=a=b", " =1", "@x=1", "/y=1")),
    ]


def outcome(overrides: list[str], tmp_path: Path) -> str:
    """What comes of a command line as far as the config: nothing wrong, or the sentence."""
    try:
        config = composed(*overrides, out=tmp_path)
    except Exception as error:  # Hydra has its own, and many others
        return explain(error, "train", overrides)  # as the command line tells them
    try:
        values = plain(config)
        training._refuse_unknown(values)
        for name in WITHOUT_MODEL:
            options = {"width": 8, "seed": 0} if name == "dictionary" else {}
            build(config[name], **options)
    except (InputError, OmegaConfBaseException) as error:
        return explain(error, "train", overrides)
    return ""


@pytest.mark.parametrize(
    ("cases", "seed"), [(40, 7), pytest.param(400, 8, marks=[pytest.mark.slow])]
)
def test_mutated_command_lines(
    cases: int, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E4 mutated overrides of every group (40 fast, 400 slow): each runs or is one sentence, never
    a trace.
    """
    monkeypatch.setattr(training, "known_keys", cache(configuration.known_keys))
    keys = list(flat_keys(OmegaConf.to_container(composed(out=tmp_path), resolve=False)))
    chance, told = random.Random(seed), 0
    for _ in range(cases):
        overrides = mutated(chance, keys)
        overrides += ["text.path=x"] if overrides[0] in PATHS else []
        said = outcome(overrides, tmp_path)
        assert "\n" not in said, overrides
        assert "Traceback" not in said, overrides
        assert len(said) < 1500, (overrides, said)
        told += bool(said)
    assert told > cases // 3


@pytest.mark.parametrize(
    "overrides",
    [
        ["seed=["],
        ["=3"],
        ["prox=a=b"],
        ["prox.k==3"],
        ["+prox.k=3"],
        ["++prox.q=3"],
        ["~prox.q"],
        ["prox=[topk,soft]"],
        ["prox@y=topk"],
        ["prox=../../etc/passwd"],
        ["prox=../prox/topk"],
        ["name='${oc.env:NOT_THERE_AT_ALL}'"],
        ["seed='${nothing.there}'"],
        ["text=local", "text.path="],
        ["hydra.run.dir="],
        ["experiment=nothing"],
        ["-x"],
    ],
    ids=str,
)
def test_a_broken_command_line_is_one_sentence(
    overrides: list[str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """E4 a command line that is no override at all: exit code 2, one sentence, nothing made."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.train([*overrides, "max_vectors=0"])
    error = capfd.readouterr().err
    assert stop.value.code == 2
    assert "Traceback" not in error
    if overrides != ["-x"]:  # the words of argparse
        assert re.fullmatch(r"dictlearn: [^\n]+\n", error), error
    assert not list(tmp_path.rglob("checkpoints"))
