"""Runs on stored hidden states, in processes of their own, with nothing else there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch

import dictlearn
from dictlearn import caching, cli, evaluation
from dictlearn.hidden_states.cache.manifest import digest_of

ROOT = Path(dictlearn.__file__).parent.parent
TINY = [
    "trainer=cpu",
    "max_vectors=6000",
    "hidden_states.batch_size=500",
    "dictionary.n_atoms=64",
    "prox.k=8",
    "trainer.enable_progress_bar=false",
    "inference=unrolled",
]


def told(place: Path, *command: str, **environment: str) -> str:
    """Run Python in a place; return what it says."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, text_folder: Path, minilm_folder: Path) -> Path:
    """A folder with a cache of a text and of a model that are both gone."""
    place = tmp_path_factory.mktemp("cached")
    (place / "text").mkdir()
    for path in sorted(text_folder.iterdir())[:10]:
        shutil.copy(path, place / "text")
    shutil.copytree(minilm_folder, place / "model")
    command = ["path=cache", "text=local", "text.path=text", "text.validation_fraction=0.2"]
    command += ["transformer=local", "transformer.path=model", "transformer.dtype=float32"]
    command += ["hidden_states.layers=[0,3]", "shard_vectors=5000"]
    said = told(place, "-c", "from dictlearn.cli import main; main()", "cache", *command)
    for words in ("training and", "are free", "cache is complete"):
        assert words in said
    for name in ("text", "model", "data"):
        (place / name).rename(place / f"{name} that is gone")
    return place


@pytest.fixture(scope="module")
def without_transformers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All installed packages but `transformers`: torchmetrics imports it where it finds it."""
    folder = tmp_path_factory.mktemp("packages")
    for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not path.name.startswith(("transformers", "tokenizers", "gt_all", "datasets", "__edit")):
            (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture(scope="module")
def run(place: Path, without_transformers: Path) -> Path:
    """The run directory of a run on the cache."""
    code = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(without_transformers)!r}]\n"
        "from dictlearn import cli\n"
        "try:\n"
        "    cli.train(sys.argv[1:])\n"
        "finally:\n"
        "    heavy = {'transformers', 'tokenizers', 'datasets'}\n"
        "    print('IMPORTED', sorted(heavy & set(sys.modules)))\n"
    )
    overrides = ["hidden_states=cached", "path=cache", *TINY, "hydra.run.dir=run"]
    said = told(place, "-S", "-c", code, *overrides)
    assert "IMPORTED []" in said
    assert "no transformer is needed" in said
    assert "Held-out text" in said
    return place / "run"


def test_a_run_needs_neither_transformers_nor_model_nor_text(run: Path) -> None:
    figures = json.loads((run / "metrics.json").read_text())
    assert 0 < figures["val/fvu"] < 0.8
    assert {"val/fvu_layer_0", "val/fvu_layer_3"} <= set(figures)
    page = (run / "factors.html").read_text()
    assert all(word in page for word in ("statement", "expression", "object"))  # of its contexts


def test_our_own_code_imports_no_transformers(place: Path) -> None:
    code = (
        "import sys, torchmetrics\n"
        "for name in [n for n in sys.modules if n.partition('.')[0] == 'transformers']:\n"
        "    del sys.modules[name]\n"
        "import dictlearn.training, dictlearn.evaluation\n"
        "from dictlearn.hidden_states import CachedDataModule, CachedOptions\n"
        "data = CachedDataModule(CachedOptions('cache'))\n"
        "data.setup()\n"
        "next(iter(data.train_dataloader())), next(iter(data.val_dataloader()))\n"
        "data.decode_tokens([2003]), data.context(0, 3, 2, 2)\n"
        "print('IMPORTED', sorted(n for n in sys.modules if n.startswith('transformers')))\n"
    )
    assert "IMPORTED []" in told(place, "-c", code)


def test_the_artefact_finds_its_transformer_where_there_is_one(run: Path, place: Path) -> None:
    about = json.loads((run / "dictionary" / "config.json").read_text())
    manifest = json.loads((place / "cache" / "manifest.json").read_text())
    assert about["transformer"] == manifest["transformer"]
    assert about["text"] == manifest["text"]
    (place / "model that is gone").rename(place / "model")
    try:
        found = dictlearn.load(run).encode_text("The class statement defines a new type.")
        assert found.layers == (0, 3)
        assert found.codes.shape == (2, len(found.tokens), 64)
    finally:
        (place / "model").rename(place / "model that is gone")


def test_ctrl_c_while_a_cache_is_made_is_no_stack_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(caching, "build_cache", interrupted)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.cache(["path=states", "hidden_states.layers=[0]"])
    assert ended.value.code == 75
    said = capsys.readouterr()
    assert said.out.endswith("Stopped: what is finished is kept, and the same command goes on.\n")
    assert said.out.count("\n") == 1
    assert not said.err


def test_inferences_are_compared_on_the_held_out_vectors_of_the_cache(
    run: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    options = run / ".hydra" / "begun.yaml"
    assert "prefetch: true" in options.read_text()
    before = options.read_text().replace("prefetch: true", "prefetch: auto")  # of older versions
    options.write_text(before)
    cli.evaluate(["inference", f"run={run}", "methods=[omp]", "l0=[8]", "vectors=300"])
    figures = json.loads((run / "evaluation" / "inference.json").read_text())
    assert 0 < figures["points"][0]["fvu"] < 1


def test_inferences_are_compared_on_vectors_from_all_held_out_text_also_of_a_run_without_validation(
    run: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def held_out(n: int) -> torch.Tensor:
        return evaluation._held_out(run, trained, n).vectors

    monkeypatch.chdir(place)
    trained = dictlearn.load(run)
    everything, some = held_out(10**6), held_out(300)
    assert len(some) == 300
    places = [int((everything == row).all(1).nonzero()[0, 0]) for row in some]
    assert min(places) < 0.25 * len(everything)
    assert max(places) > 0.75 * len(everything)
    options = run / ".hydra" / "begun.yaml"
    before = options.read_text()
    none = re.sub("validation_vectors: [0-9]+", "validation_vectors: 0", before)
    assert none != before
    options.write_text(none)
    assert torch.equal(held_out(300), some)
    options.write_text(before)


def test_an_output_that_cannot_be_written_is_told_before_anything_is_measured(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "_held_out", None)
    (tmp_path / "file").touch()
    for output in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere")):
        with pytest.raises(SystemExit) as ended:
            cli.evaluate(["inference", f"run={run}", "l0=[8]", f"output={output}"])
        assert ended.value.code == 2
        assert f"output={output} cannot be written to" in capsys.readouterr().err


def test_a_plain_file_of_vectors_gives_a_dictionary_for_vectors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = np.random.default_rng(0).standard_normal((3000, 16)).astype(np.float32)
    np.save(tmp_path / "vectors.npy", rows)
    monkeypatch.chdir(tmp_path)
    given = ["hidden_states=cached", "hidden_states.path=vectors.npy", "hydra.run.dir=run"]
    cli.train([*given, *TINY, "hidden_states.layers=[4]"])
    log = (tmp_path / "run" / "run.log").read_text()
    assert log.count("there is no factors.html") == 1
    assert not (tmp_path / "run" / "factors.html").exists()
    trained = dictlearn.load(tmp_path / "run")
    vectors = torch.from_numpy(rows[:50])
    codes = trained.encode(vectors, layer=4)
    assert codes.shape == (50, 64)
    assert torch.equal(codes, trained.encode(vectors))
    with pytest.raises(dictlearn.errors.InputError, match=r"vectors of vectors\.npy.*not known"):
        trained.encode_text("A sentence.")
    cli.evaluate(["inference", "run=run", "methods=[omp]", "l0=[8]", "vectors=100"])
    assert "vectors.npy" in (tmp_path / "run" / "evaluation" / "inference.html").read_text()
    capsys.readouterr()
    with pytest.raises(SystemExit):
        cli.encode(["run=run", "text=A sentence."])
    assert "is not known: give hidden states to encode()" in capsys.readouterr().err


@pytest.mark.slow
def test_torchrun_makes_the_bytes_that_one_process_makes(
    tmp_path: Path, text_folder: Path, minilm_folder: Path
) -> None:
    (tmp_path / "main.py").write_text("from dictlearn.cli import main\n\nmain()\n")
    given = ["text=local", f"text.path={text_folder}", "text.max_documents=10"]
    given += ["transformer=local", f"transformer.path={minilm_folder}"]
    given += ["hidden_states.layers=[0,3]", "shard_vectors=2000"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "main.py"]
    said = told(tmp_path, *launch, "cache", "path=two", *given)
    assert said.count("are to be made") == 1
    told(tmp_path, "main.py", "cache", "path=one", *given)
    one, two = (
        {str(p.relative_to(tmp_path / name)): digest_of(p) for p in (tmp_path / name).rglob("*.*")}
        for name in ("one", "two")
    )
    assert len(one) > 10
    assert one == two


def test_a_mistake_of_the_command_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "thesis.tex").touch()
    for given, words in (
        ([], "path has no value: give it as path=VALUE"),
        (["path=x", "dtype=int8"], "dtype=int8 is not one of auto, float32"),
        (["path=x", "shard_vectors=0"], "shard_vectors=0 must be at least 1"),
        (["path=x", "+wrong=1"], "There is no option 'wrong'"),
        (["path=x", "hidden_states=cached", "hidden_states.path=y"], "leave hidden_states=stream"),
        (["path=x", "device=tpu"], "device=tpu is not one of"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.cache(given)
        error = capfd.readouterr().err
        assert stop.value.code == 2
        assert words in error
        assert error.count("\n") == 1
    assert os.listdir(tmp_path) == ["thesis.tex"]
