"""The main job end to end: real transformer, real text, real processes."""

import json
import os
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

import dictlearn
from dictlearn import cli

ROOT = Path(dictlearn.__file__).parent.parent
SMALL = [
    "trainer=cpu",
    "max_vectors=30000",
    "hidden_states.batch_size=1024",
    "hidden_states.validation_vectors=4096",
    "dictionary.n_atoms=256",
    "prox.k=8",
    "trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=5",
    "text=local",
]


def run(place: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Run ``python train.py`` in another directory, as a user would."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *overrides],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, text_folder: Path) -> Path:
    """The run directory of one finished run."""
    place = tmp_path_factory.mktemp("run")
    text = place / "text"
    shutil.copytree(text_folder, text)
    for path in text.iterdir():  # so that it is in the held-out text, whichever that is
        path.write_text(path.read_text() + " The tag <script>alert(1)</script> is text." * 3)
    done = run(place, *SMALL, f"text.path={text}", "hydra.run.dir=out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Held-out text" in done.stdout
    assert "factors.html" in done.stdout
    return place / "out"


def test_the_run_directory_is_complete(finished: Path) -> None:
    for name in (
        ".hydra/config.yaml",
        ".hydra/overrides.yaml",
        "checkpoints/last.ckpt",
        "dictionary/dictionary.safetensors",
        "dictionary/config.json",
        "metrics.json",
        "metrics.csv",
        "factors.html",
        "run.log",
    ):
        assert (finished / name).stat().st_size > 0, name
    assert list((finished / "checkpoints").glob("best-*.ckpt"))


def test_metrics_json_has_every_key_and_sane_figures(finished: Path) -> None:
    figures = json.loads((finished / "metrics.json").read_text())
    assert all(isinstance(value, float) for value in figures.values())
    for layer in range(7):
        assert 0 < figures[f"val/fvu_layer_{layer}"] < 1
        assert 0 < figures[f"val/l0_layer_{layer}"] <= 12  # 8 is the mean over all layers
    assert figures["val/l0"] == pytest.approx(8, rel=0.2)
    for key in ("val/objective", "val/duality_gap", "val/dead_fraction", "val/cosine"):
        assert figures[key] >= 0
    assert figures["val/fvu"] < 0.6
    assert figures["train/vectors"] >= 30000
    assert figures["train/tokens"] == figures["train/vectors"] // 7
    assert figures["train/vectors_per_second"] > 0
    assert figures["seconds/total"] > 0


def test_the_history_holds_training_and_held_out_figures(finished: Path) -> None:
    header = (finished / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"step", "train/fvu", "train/l0", "train/loss", "val/fvu", "val/fvu_layer_6"} <= set(
        header
    )


def test_the_checkpoint_holds_plain_tensors_and_values(finished: Path) -> None:
    checkpoint = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["config"]["dictionary"]["n_atoms"] == 256
    assert checkpoint["vectors_seen"] >= 30000


def test_the_artefact_encodes_in_a_fresh_process(finished: Path) -> None:
    code = (
        "import dictlearn, torch\n"
        f"trained = dictlearn.load({str(finished)!r})\n"
        "text = trained.encode_text('The class statement defines a new type.')\n"
        "vectors = text.hidden_states\n"
        "codes = trained.encode(vectors)\n"
        "assert codes.shape == (7, len(text.tokens), 256), codes.shape\n"
        "assert torch.allclose(codes, text.codes, atol=1e-5)\n"
        "one = trained.encode(vectors[4], layer=4)\n"
        "assert torch.allclose(one, codes[4], atol=1e-5)\n"
        "error = (trained.decode(codes) - vectors).square().sum()\n"
        "spread = (vectors - vectors.mean(1, keepdim=True)).square().sum()\n"
        "assert error < 0.7 * spread, (error, spread)\n"
        "count = (codes > 0).sum(-1).double()\n"
        "assert 4 < count.mean() < 12 and count.max() <= 32 and (codes >= 0).all()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_encode_prints_factors_per_layer_and_token(
    finished: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    cli.encode([f"run={finished}", 'text=The "bank", it\'s [by] the river: a=b ${c}', "top=2"])
    assert os.listdir(tmp_path) == []
    printed = capsys.readouterr().out
    assert printed.count("hidden state") == 7
    assert "river" in printed
    assert "bank" in printed


def test_evaluate_compares_inferences_on_the_held_out_text_of_the_run(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished.parent)
    few = [
        "l0=[4,8]",
        "vectors=1024",
        "methods=[trained,matching_pursuit,omp,exchange,exchange+shared,working_set,working_set+refit]",
    ]
    cli.evaluate(["inference", "run=out", *few])
    printed = capsys.readouterr().out
    assert "omp" in printed
    assert "inference.html" in printed
    found = json.loads((finished / "evaluation" / "inference.json").read_text())
    assert 500 < found["vectors"] <= 1024
    points = {(point["method"], point["wanted"]): point for point in found["points"]}
    assert len(points) == 14
    figures = json.loads((finished / "metrics.json").read_text())
    own = points["trained", 8]
    shared, each = points["exchange+shared", 8], points["exchange", 8]
    assert abs(shared["l0"] - 8) < 0.5
    assert shared["fvu"] < each["fvu"]
    assert own["fvu"] == pytest.approx(shared["fvu"], rel=0.05)  # what the default ends with
    assert each["l0"] <= 8
    assert abs(own["fvu"] - figures["val/fvu"]) < 0.1  # 1,024 of the 4,096 vectors
    assert each["fvu"] < points["omp", 8]["fvu"] < points["matching_pursuit", 8]["fvu"] < 1
    assert points["omp", 8]["fvu"] < points["omp", 4]["fvu"]
    assert points["omp", 8]["gap"] is None
    exact = points["working_set", 8]
    assert abs(exact["l0"] - 8) < 1
    assert 0 <= exact["worst_gap"] <= 1e-4
    assert points["working_set+refit", 8]["fvu"] < exact["fvu"]
    assert all(point["microseconds"] > 0 for point in points.values())
    assert "omp" in (finished / "evaluation" / "inference.html").read_text(encoding="utf-8")


class Page(HTMLParser):
    """Collects the elements and the text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_no_network(finished: Path) -> None:
    page = Page()
    page.feed((finished / "factors.html").read_text(encoding="utf-8"))
    for tag, attributes in page.elements:
        assert tag not in {"link", "iframe", "img", "object"}
        assert not any(str(attributes.get(key, "")).startswith("http") for key in ("src", "href"))
    scripts = [attributes for tag, attributes in page.elements if tag == "script"]
    assert not scripts
    assert "script>" in page.text.replace(" ", "")
    assert "NaN" not in page.text
    assert "undefined" not in page.text


def test_same_seed_same_figures_twice(tmp_path: Path, text_folder: Path) -> None:
    """C11 the same command twice: the same figures."""
    figures = []
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        few = [*SMALL, "max_vectors=8192", f"seed={seed}"]
        cli.train(
            [
                *few,
                f"text.path={text_folder}",
                f"hydra.run.dir={tmp_path}/{out}",
                f"data_dir={tmp_path}",
            ]
        )
        found = json.loads((tmp_path / out / "metrics.json").read_text())
        figures.append({key: value for key, value in found.items() if "second" not in key})
    assert figures[0] == figures[1]
    assert figures[0]["val/fvu"] != figures[2]["val/fvu"]


def test_a_multirun_makes_one_run_for_every_value(tmp_path: Path, text_folder: Path) -> None:
    done = run(
        tmp_path,
        "-m",
        *SMALL,
        "max_vectors=4096",
        f"text.path={text_folder}",
        "hydra.sweep.dir=sweep",
        "dictionary.n_atoms=64,128",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for job, n_atoms in (("0", 64), ("1", 128)):
        config = json.loads((tmp_path / "sweep" / job / "dictionary" / "config.json").read_text())
        assert config["dictionary"]["n_atoms"] == n_atoms
        assert (tmp_path / "sweep" / job / "metrics.json").is_file()


def test_two_processes_make_one_run(tmp_path: Path, text_folder: Path) -> None:
    done = run(
        tmp_path,
        *SMALL,
        "trainer=ddp_cpu",
        "hidden_states.batch_size=512",
        f"text.path={text_folder}",
        "hydra.run.dir=out",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(os.listdir(tmp_path)) == ["data", "out"]
    figures = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert figures["train/vectors"] >= 30000
    assert figures["val/fvu"] < 0.6
    assert len(list((tmp_path / "out").glob("metrics*.csv"))) == 1
    assert [path.name for path in (tmp_path / "out").glob("*.log")] == ["run.log"]
    assert done.stdout.count("transformer minilm") == 1


def test_two_processes_hold_one_dictionary_together(tmp_path: Path, text_folder: Path) -> None:
    parts = ["trainer=dictionary_parallel", "trainer.accelerator=cpu"]
    parts += ["max_vectors=15000", "hidden_states.validation_vectors=1024"]
    done = run(tmp_path, *SMALL, *parts, f"text.path={text_folder}", "hydra.run.dir=out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(os.listdir(tmp_path)) == ["data", "out"]
    place = tmp_path / "out"
    assert {path.name for path in place.iterdir()} == {
        *(".hydra", "checkpoints", "dictionary"),
        *("metrics.json", "metrics.csv", "factors.html", "run.log"),
    }
    figures = json.loads((place / "metrics.json").read_text())
    assert figures["train/vectors"] >= 15000
    assert figures["val/fvu"] < 0.7
    assert "val/amortisation_gap" not in figures  # batch_topk has no number of codes a row
    trained = dictlearn.load(place)
    assert trained.dictionary.atoms.shape == (256, 384)
    assert torch.allclose(trained.dictionary.atoms.norm(dim=1), torch.ones(256))
    checkpoint = torch.load(place / "checkpoints" / "last.ckpt", weights_only=True)
    assert torch.equal(checkpoint["state_dict"]["dictionary.atoms"], trained.dictionary.atoms)
    (state,) = checkpoint["optimizer_states"]
    assert state["state"][0]["exp_avg"].shape == (256, 384)
    assert done.stdout.count("transformer minilm") == 1


def test_what_two_processes_cannot_do_together_is_told_in_one_sentence(
    tmp_path: Path, text_folder: Path
) -> None:
    done = run(
        tmp_path,
        *SMALL,
        "trainer=dictionary_parallel",
        "trainer.accelerator=cpu",
        "inference=two_phase",
        f"text.path={text_folder}",
        "hydra.run.dir=out",
    )
    assert done.returncode != 0
    assert "choose inference=unrolled" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert os.listdir(tmp_path) == []
