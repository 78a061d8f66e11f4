"""A user's mistake: one sentence, exit code 2, nothing half made left behind."""

import os
import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from dictlearn import cli

FAST = [
    "trainer=cpu",
    "max_vectors=4096",
    "hidden_states.batch_size=1024",
    "hidden_states.validation_vectors=2048",
    "dictionary.n_atoms=64",
    "callbacks=none",
    "trainer.enable_progress_bar=false",
]

MISTAKES = {
    "unknown option of a group": (["prox=topkk"], r"prox=topkk.*Did you mean 'topk'"),
    "unknown group": (["proxx=topk"], r"'proxx'.*Did you mean 'prox'"),
    "a group left out": (["~prox"], r"'prox' is needed: leave ~prox out"),
    "the trainer left out": (["~trainer"], r"'trainer' is needed"),
    "a key left out": (["~resume"], r"'resume' is needed"),
    "a key of a group left out": (
        ["~trainer.val_check_interval"],
        r"'trainer\.val_check_interval'",
    ),
    "a needed argument left out": (["~dictionary.n_atoms"], r"n_atoms"),
    "unknown key": (["dictionary.n_atom=8"], r"dictionary\.n_atom'.*'dictionary\.n_atoms'"),
    "added unknown key": (["+max_vector=8"], r"max_vector'.*'max_vectors'"),
    "added unknown argument": (["+prox.q=8"], r"no option 'q'"),
    "no value": (["text=local"], r"text\.path"),
    "missing text": (["text=local", "text.path=nowhere.txt"], r"nowhere\.txt"),
    "empty text": (["text=local", "text.path={tmp}/empty.txt"], r"empty\.txt.*(no|without|empty)"),
    "bytes that are no text": (["text=local", "text.path={tmp}/bytes.txt"], r"bytes\.txt.*byte"),
    "a column that is not there": (
        ["text=local", "text.path={tmp}/rows.jsonl", "text.column=txt"],
        r"txt.*Did you mean 'text'",
    ),
    "hidden states that are not finite": (
        ["transformer=local", "transformer.path={nan}", "transformer.dtype=float32"],
        r"hidden_states\[3\].*not finite in document .*\.txt",
    ),
    "no folder of a model": (
        ["transformer=local", "transformer.path={tmp}/no"],
        r"/no does not exist",
    ),
    "a folder without weights": (["transformer=local", "transformer.path={tmp}/bare"], r"weights"),
    "layers out of range": (["hidden_states.layers=[0,9]"], r"9.*0.*6"),
    "option of another choice": (["prox=soft", "prox.k=5"], r"'prox\.k'.*prox\.lambda_"),
    "no atoms": (["dictionary.n_atoms=0"], r"n_atoms=0"),
    "negative atoms": (["dictionary.n_atoms=-5"], r"n_atoms=-5"),
    "atoms in words": (["dictionary.n_atoms=many"], r"n_atoms.*'many'"),
    "negative lambda": (["prox=soft", "prox.lambda_=-0.1"], r"lambda_=-0\.1"),
    "processes that keep what they learn": (
        ["trainer.devices=2", "trainer.strategy=ddp_spawn"],
        r"choose trainer\.strategy=ddp,",
    ),
    "a time without a unit": (["trainer.max_time=5"], r"max_time=5 must be DD:HH:MM:SS"),
    "epochs": (["+trainer.max_epochs=3"], r"trainer\.max_epochs .*max_vectors says how long"),
    "a run of one batch": (["+trainer.fast_dev_run=true"], r"fast_dev_run .*debug=quick"),
    "a seed that is too large": (["seed=4294967296"], r"seed=4294967296 must be .*4294967295"),
    "k above n_atoms": (["prox.k=65"], r"65.*64"),
    "block too long": (["hidden_states.block_length=600"], r"600.*512|512.*600"),
    "text too short": (["text=local", "text.path={tmp}/few.jsonl"], r"shorter than one block"),
    "one document": (["text=local", "text.path={tmp}/one.txt"], r"two documents"),
    "layers that are no list": (["hidden_states.layers=3"], r"hidden_states\.layers=3.*\[3\]"),
    "no layers": (["hidden_states.layers=[]"], r"hidden_states\.layers"),
    "a word for a flag": (["dictionary.bias=no"], r"dictionary\.bias=no.*true or false"),
    "a word for momentum": (
        ["inference=unrolled", "inference.momentum=off"],
        r"inference\.momentum=off.*true or false",
    ),
    "a precision that is not": (["+trainer.precision=bf16-true"], r"precision"),
    "a strategy that is not": (["trainer.strategy=foo"], r"foo"),
    "accumulation": (["+trainer.accumulate_grad_batches=2"], r"accumulate_grad_batches"),
    "never logging": (["trainer.log_every_n_steps=0"], r"log_every_n_steps=0"),
    "never validating": (["trainer.val_check_interval=0"], r"val_check_interval=0"),
    "a monitor that is not": (
        ["callbacks=default", "callbacks.checkpoint.monitor=val/foo"],
        r"val/foo",
    ),
    "one of several loggers": (["logger=[csv,wandbb]"], r"logger=wandbb.*'wandb'"),
    "no budget": (["max_vectors=0"], r"max_vectors=0"),
    "fractional budget": (["max_vectors=10.5"], r"max_vectors.*10\.5"),
    "wrong seed": (["seed=-1"], r"seed=-1"),
    "lr of zero": (["update=adam", "update.lr=0"], r"lr=0"),
    "foreign target": (["prox._target_=os.system"], r"os\.system"),
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minilm_folder: Path) -> Path:
    """A working directory with the things that mistakes are made with."""
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "one.txt").write_text("One document and no other. " * 60)
    (tmp_path / "few.jsonl").write_text("".join(f'{{"text": "word {i}"}}\n' for i in range(12)))
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (bare / name).write_bytes((minilm_folder / name).read_bytes())
    (tmp_path / "bytes.txt").write_bytes(b"text \xff\xfe and more")
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def broken_model(tmp_path_factory: pytest.TempPathFactory, minilm_folder: Path) -> Path:
    """A copy of the model in which one weight of the third block is not a number."""
    return broken_copy(minilm_folder, tmp_path_factory.mktemp("model") / "nan")


def broken_copy(model: Path, folder: Path) -> Path:
    shutil.copytree(model, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.layer.2.output.dense.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_one_sentence(
    name: str, place: Path, broken_model: Path, text_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """E4 forty usual mistakes on the command line: one sentence, exit code 2, nothing left
    behind.
    """
    overrides, pattern = MISTAKES[name]
    text = (
        []
        if any("text" in item for item in overrides)
        else ["text=local", f"text.path={text_folder}"]
    )
    before = sorted(os.listdir(place))
    with pytest.raises(SystemExit) as stop:
        cli.train([*FAST, *text, *(item.format(tmp=place, nan=broken_model) for item in overrides)])
    error = capfd.readouterr().err
    assert stop.value.code == 2
    said = [line for line in error.splitlines() if line.startswith("dictlearn: ")]
    assert len(said) == 1, error
    assert re.search(pattern, said[0]), said[0]
    assert "Traceback" not in error
    assert [entry for entry in sorted(os.listdir(place)) if entry != "data"] == before


def test_an_unknown_command_names_the_nearest(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["dictlearn", "trian"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "Did you mean 'train'" in capfd.readouterr().err


def test_a_directory_that_held_something_is_left_alone(place: Path, text_folder: Path) -> None:
    (place / "mine").mkdir()
    (place / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(SystemExit):
        cli.train([*FAST, "dictionary.n_atoms=0", "hydra.run.dir=mine"])
    assert (place / "mine" / "notes.txt").read_text() == "keep"
