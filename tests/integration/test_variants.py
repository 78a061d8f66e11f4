"""Whole runs in process: other models, the paper's presets, other compositions and loggers."""

import contextlib
import importlib.util
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from omegaconf import OmegaConf
from transformers import GPT2Config

import dictlearn
from dictlearn import cli
from tests.loggers.read_offline import read_offline
from tests.transformer.models import save_gpt2_tokenizer, save_model

SMALL = [
    "trainer=cpu",
    "max_vectors=6144",
    "hidden_states.batch_size=512",
    "hidden_states.validation_vectors=2048",
    "hidden_states.statistics_tokens=512",
    "dictionary.n_atoms=96",
    "trainer.enable_progress_bar=false",
    "text=local",
]


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text_folder: Path) -> Any:
    """Run ``train`` in a directory of its own; return the run directory and the figures."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)

    def run(*overrides: str) -> tuple[Path, dict[str, float]]:
        cli.train([*SMALL, f"text.path={text_folder}", "hydra.run.dir=out", *overrides])
        return tmp_path / "out", json.loads((tmp_path / "out" / "metrics.json").read_text())

    return run


@pytest.fixture(scope="module")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random GPT-2 with its own byte-level tokenizer."""
    folder = tmp_path_factory.mktemp("gpt2")
    vocabulary = save_gpt2_tokenizer(folder)
    save_model(
        GPT2Config(vocab_size=vocabulary, n_positions=64, n_embd=24, n_layer=3, n_head=2), folder
    )
    return folder


def test_a_decoder_is_trained_on_and_encodes_text(train: Any, gpt2_folder: Path) -> None:
    out, figures = train(
        "transformer=local",
        f"transformer.path={gpt2_folder}",
        "hidden_states.block_length=32",
        "prox.k=6",
    )
    assert {f"val/fvu_layer_{layer}" for layer in range(4)} <= set(figures)
    assert figures["val/fvu"] < 1
    found = dictlearn.load(out).encode_text("A sentence.")
    assert found.codes.shape == (4, len(found.tokens), 96)


@pytest.mark.parametrize("name", ["yun2021_short", "yun2021_long"])
def test_the_paper_runs_on_a_local_model_and_text(
    train: Any, minilm_folder: Path, text_folder: Path, name: str
) -> None:
    short = [item for item in SMALL if item.startswith(("trainer", "text"))]
    cli.train(
        [
            *[item for item in short if item != "text=local"],
            f"experiment={name}",
            f"transformer.path={minilm_folder}",
            f"text.path={text_folder}",
            "max_vectors=300",
            "dictionary.n_atoms=64",
            "inference.max_steps=20",
            "hidden_states.validation_vectors=512",
            "hidden_states.statistics_tokens=512",
            "hidden_states.sequences_per_block=4",
            "hydra.run.dir=paper",
        ]
    )
    figures = json.loads(Path("paper/metrics.json").read_text())
    assert {"val/fvu_layer_0", "val/fvu_layer_2", "val/fvu_layer_4"} <= set(figures)
    assert "val/fvu_layer_1" not in figures
    assert figures["train/vectors"] == 300


@pytest.mark.parametrize(
    "overrides",
    [
        ["prox=soft", "inference=fista", "update=hessian_diagonal"],
        ["prox=soft", "inference=ista", "inference.max_steps=50", "update=adam"],
        ["prox=soft", "inference=unrolled", "update=hessian_diagonal", "dictionary.bias=true"],
        ["prox.k=8", "inference=unrolled", "inference.n_layers=1", "inference.weights=shared"],
        ["prox.k=8", "inference=unrolled", "inference.weights=untied", "inference.momentum=true"],
        ["prox.k=8", "hidden_states.normalization=none", "dictionary.initialization=data"],
        ["prox=relu", "inference=unrolled", "inference.n_layers=1", "inference.weights=shared"],
    ],
    ids=lambda overrides: " ".join(overrides),
)
def test_every_composition_learns_and_can_be_loaded(train: Any, overrides: list[str]) -> None:
    out, figures = train(*overrides, "hidden_states.layers=[0,3]", "callbacks=none")
    assert 0 < figures["val/fvu"] < 0.95
    trained = dictlearn.load(out)
    raw = torch.randn(5, 384)
    codes = trained.encode(raw, layer=3)
    assert codes.shape == (5, 96)
    assert bool((codes >= 0).all())
    assert trained.decode(codes, layer=3).shape == raw.shape


def test_exact_inference_certifies_its_held_out_codes(train: Any) -> None:
    _, figures = train(
        "prox=soft",
        "inference=fista",
        "inference.tolerance=1e-3",
        "inference.max_steps=2000",
        "hidden_states.layers=[4]",
        "callbacks=none",
    )
    assert 0 <= figures["val/duality_gap"] <= 1e-3


def test_more_vectors_than_the_text_has_go_round_again(train: Any, tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    for number in range(8):
        (tmp_path / "text" / f"{number}.txt").write_text(f"Text number {number}. " * 40)
    out, _ = train(f"text.path={tmp_path}/text", "prox.k=4", "hidden_states.layers=[1]")
    (line,) = [line for line in (out / "run.log").read_text().splitlines() if "round" in line]
    assert "max_vectors=6144" in line


def test_several_loggers_write_side_by_side(train: Any) -> None:
    pytest.importorskip("tensorboard")
    out, _ = train("logger=[csv,tensorboard]", "prox.k=4", "hidden_states.layers=[0]")
    assert (out / "metrics.csv").is_file()
    assert list((out / "tensorboard").rglob("events.out.tfevents.*"))


@pytest.fixture
def no_login(monkeypatch: pytest.MonkeyPatch) -> None:
    """A place where W&B knows nobody."""
    with contextlib.suppress(OSError):  # the service of an earlier test may be gone
        wandb.teardown()
    for key in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_SERVICE"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("NETRC", "/nonexistent")


@pytest.mark.usefixtures("no_login")
def test_wandb_offline_holds_config_history_page_and_artifact(train: Any) -> None:
    out, figures = train(
        "logger=wandb", "prox.k=4", "hidden_states.layers=[0,2]", "trainer.log_every_n_steps=2"
    )
    log = (out / "run.log").read_text().splitlines()
    assert sum("records this run offline" in line for line in log) == 1
    run = read_offline(out)
    assert run.config["dictionary"]["n_atoms"] == 96
    assert run.config["hidden_states"]["layers"] == [0, 2]
    fvu = [row["val/fvu"] for row in run.history if "val/fvu" in row]
    assert len(fvu) >= 4
    assert abs(fvu[-1] - figures["val/fvu"]) < 1e-6
    for key in ("train/fvu", "atom_usage", "factors"):
        assert any(key in row for row in run.history), key
    (artifact,) = [entry for entry in run.artifacts if entry.type == "dictionary"]
    assert artifact.name
    assert run.exit_codes == [0]


@pytest.mark.usefixtures("no_login")
def test_wandb_has_usage_page_and_artifact_of_every_variant_under_its_name(train: Any) -> None:
    out, _ = train(
        *("logger=wandb", "variants={prox.k:[4,6]}", "hidden_states.layers=[0]"),
        *("inference=unrolled", "update=adam", "branch_at=0.5"),
    )
    run = read_offline(out)
    keys = {key for row in run.history for key in row}
    for name in ("k4", "k6"):
        assert {f"{name}/{key}" for key in ("val/fvu", "atom_usage", "factors")} <= keys
    for key in ("val/fvu", "atom_usage", "factors"):  # of the one that learns for both at first
        one, other = (sum(f"{name}/{key}" in row for row in run.history) for name in ("k4", "k6"))
        assert one > other > 0, key
    assert not {"atom_usage", "factors"} & keys
    assert len([entry for entry in run.artifacts if entry.type == "dictionary"]) == 2


def test_a_wheel_carries_the_configs(tmp_path: Path) -> None:
    from hatchling.builders.wheel import WheelBuilder

    root = Path(dictlearn.__file__).parent.parent
    if not (root / "pyproject.toml").is_file():
        pytest.skip("not in a checkout")
    (wheel,) = WheelBuilder(str(root)).build(directory=str(tmp_path), versions=["standard"])
    names = set(zipfile.ZipFile(wheel).namelist())
    configs = [path.relative_to(root) for path in (root / "conf").rglob("*.yaml")]
    assert {f"dictlearn/{path}" for path in configs} <= names
    assert not any(name.startswith(("tests/", "data/", "conf/")) for name in names)
    unpacked = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(unpacked)
    path = unpacked / "dictlearn" / "configuration.py"
    spec = importlib.util.spec_from_file_location("unpacked_configuration", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.config_dir() == str(unpacked / "dictlearn" / "conf")
    assert "dictionary.n_atoms" in module.known_keys("train")


def test_variants_with_another_group_are_composed_from_ones_own_config(
    train: Any, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    (mine / "prox").mkdir(parents=True)
    text = "defaults: [train, _self_]\ndictionary: {dead_after_vectors: 777}\n"
    (mine / "mytrain.yaml").write_text(text)
    (mine / "prox" / "own.yaml").write_text("_target_: dictlearn.prox.TopK\nk: 5\n")
    given = ["prox=own", "callbacks=none", "inference=unrolled", "update=adam"]
    own = [f"--config-dir={mine}", "--config-name=mytrain"]
    out, _ = train(*given, "variants=[{prox.k:6},{update:signum}]", *own)
    for name, k in (("k6", 6), ("signum", 5)):
        kept = OmegaConf.load(out / "variants" / name / ".hydra" / "config.yaml")
        assert (kept.dictionary.dead_after_vectors, kept.prox.k) == (777, k)
