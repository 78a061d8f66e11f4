"""The command line: help at once, sentences as they are, mistakes without a trace."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.errors import HydraException

import dictlearn
from dictlearn import cli
from dictlearn.begun import going_on
from dictlearn.configuration import groups

ROOT = Path(dictlearn.__file__).parent.parent
HEAVY = ("torch", "pytorch_lightning", "transformers", "datasets", "wandb", "numpy")


def ask(place: Path, *command: str) -> str:
    """Run a command of Python in an empty folder, check what it imported, return what it says."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    imported = set(re.findall(r"^import time:.*\|\s+(\S+)$", done.stderr, flags=re.MULTILINE))
    assert "hydra" in imported
    assert not imported & set(HEAVY)
    assert os.listdir(place) == []
    return done.stdout


MAIN = ("-c", "from dictlearn.cli import main; main()")


@pytest.mark.parametrize("arguments", [("--help",), ("-h",), ()])
def test_help_lists_the_commands_and_imports_nothing_heavy(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    said = ask(tmp_path, *MAIN, *arguments)
    for command in ("dictlearn train", "dictlearn encode", "--help", "--cfg job"):
        assert command in said


@pytest.mark.parametrize("command", [(str(ROOT / "train.py"),), (*MAIN, "train")])
def test_help_of_training_lists_groups_options_and_keys(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    said = ask(tmp_path, *command, "--help")
    for group in groups():
        if group not in ("hydra", "debug", "experiment"):
            assert re.search(rf"^ *{group}: ", said, flags=re.MULTILINE), group
    for word in ("topk", "fista", "minilm", "installed_docs", "max_vectors", "dictionary.n_atoms"):
        assert word in said


def test_help_of_encode_shows_how_it_is_called(tmp_path: Path) -> None:
    said = ask(tmp_path, *MAIN, "encode", "--help")
    assert 'dictlearn encode run=DIR text="..."' in said


def test_the_whole_config_is_printed_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    said = ask(tmp_path, str(ROOT / "train.py"), "--cfg", "job", "prox=soft", "seed=41")
    assert "_target_: dictlearn.prox.Soft" in said
    assert re.search("^seed: 41", said, flags=re.MULTILINE)


SENTENCES = [
    "The bank by the river.",
    "it's 'quoted' and \"doubly\" so",
    "a, b; c: d = e == f",
    "{x: 1} [1, 2] (3) <4>",
    "  spaces at both ends  ",
    "back\\slash, \\n, C:\\new\\table",
    "one at the end\\",
    "two at the end\\\\",
    "before a quote: \\' and \\\\'",
    "'",
    "'\\",
    "$ and ${braces} and ${now:%Y} and \\${x}",
    "null",
    "true",
    "17",
    "1e-3",
    "# no comment",
    "~a +b ++c @d /e %f !g",
    "tab\tand\nnew line\\\n",
    "größer, 中文, 😀",
]


@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_sentence_reaches_the_command_as_it_was_typed(
    sentence: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[tuple[str, str]] = []
    monkeypatch.setattr(
        "dictlearn.summary.show_factors",
        lambda config, sentence: seen.append((config.run, sentence)),
    )
    cli.encode([f"text={sentence}", "run=text"])
    assert seen == [("text", sentence)]


@pytest.mark.parametrize("argument", ["run=text=1", "top=3", "layers=[0,3]", "--help", "text"])
def test_other_arguments_are_left_to_hydra(argument: str) -> None:
    assert cli._sentence([argument]) == ("", [argument])


def told(capfd: pytest.CaptureFixture[str], stop: pytest.ExceptionInfo[SystemExit]) -> str:
    """Return the one sentence that a mistake is told in."""
    error = capfd.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("dictlearn: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["text=Hello"], "run has no value: give it as run=VALUE"),
        (["run=nowhere", "text=Hello"], "There is no trained dictionary at nowhere"),
        (["run=nowhere"], 'give a sentence as text="..."'),
        (["run=nowhere", "text="], 'give a sentence as text="..."'),
        (["rum=nowhere", "text=Hello"], "'rum'.*Did you mean 'run'"),
        (["run=nowhere", "text=Hello", "top=0"], "top=0"),
    ],
)
def test_a_mistake_of_encode_is_one_sentence_and_leaves_nothing(
    arguments: list[str],
    pattern: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.encode(arguments)
    assert re.search(pattern, told(capfd, stop))
    assert os.listdir(tmp_path) == []


def test_the_command_line_and_the_environment_are_put_back(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    before = list(sys.argv)
    with pytest.raises(SystemExit) as stop:
        cli.train(["dictionary.n_atom=8"])
    assert "'dictionary.n_atoms'" in told(capfd, stop)
    assert sys.argv == before
    assert "HYDRA_FULL_ERROR" not in os.environ


def test_who_asks_for_the_trace_gets_the_error_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(HydraException, match="n_atom"):
        cli.train(["dictionary.n_atom=8"])
    assert os.environ["HYDRA_FULL_ERROR"] == "1"


def test_other_processes_leave_telling_the_mistake_to_the_main_one(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit) as stop:
        cli.encode(["run=nowhere", "text=Hello"])
    assert stop.value.code == 2
    assert capfd.readouterr().err == ""


def kept(folder: Path, overrides: str, inference: str = "unrolled") -> Path:
    """Write what Hydra keeps of a run."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(overrides)
    choices = f"{{inference: {inference}, update: adam, trainer: dictionary_parallel}}"
    (folder / ".hydra" / "hydra.yaml").write_text(f"hydra: {{runtime: {{choices: {choices}}}}}")
    return folder


def test_a_run_goes_on_under_another_trainer_with_what_the_first_one_chose(tmp_path: Path) -> None:
    began = "[trainer=dictionary_parallel, trainer.devices=2, max_vectors=9, update=signum,"
    began += " trainer.strategy.dictionary_parallel_size=2, trainer.log_every_n_steps=3]"
    line = [f"run={kept(tmp_path / 'a', began)}", "resume=true"]
    place = f"hydra.run.dir='{tmp_path / 'a'}'"
    assert going_on(line) == [*began[1:-1].split(", "), "resume=true", place]
    assert going_on([*line, "trainer=cpu"]) == [
        *("trainer=dictionary_parallel", "max_vectors=9", "update=signum"),
        *("trainer.log_every_n_steps=3", "inference=unrolled", "resume=true", "trainer=cpu", place),
    ]
    hostile = kept(tmp_path / "b", began, "'x hydra.launcher=y'")
    assert "launcher" not in str(going_on([f"run={hostile}", *line[1:], "trainer=cpu"]))
    (hostile / ".hydra" / "hydra.yaml").unlink()
    assert going_on([f"run={hostile}", *line[1:], "trainer=cpu"])
