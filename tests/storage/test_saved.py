"""A dictionary is saved as data and read back, or refused."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import dictlearn
from dictlearn.errors import InputError
from dictlearn.inference import Fista, Iterative, Unrolled
from dictlearn.prox import Soft, TopK, Weighted
from dictlearn.storage import artifact
from dictlearn.storage.saved import load, save_dictionary
from tests.small_run import LAYERS, save
from tests.storage.made import ATOMS, FISTA, ITERATIVE, WIDTH, Made, Make


def test_everything_comes_back_bit_by_bit(made: Made) -> None:
    for name in ("dictionary", "inference", "normalization"):
        expected = getattr(made.learner, name).state_dict()
        found = getattr(made.trained, name).state_dict()
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(found[key], value), f"{name}.{key}"
    trained = made.trained
    assert torch.equal(trained.atoms, made.learner.dictionary.atoms)
    assert trained.prox == TopK(8)
    assert trained.layers == LAYERS
    assert trained.normalization.kind == "center_unit_scale"
    assert isinstance(trained.inference, Unrolled)
    assert not any(p.requires_grad for p in trained.inference.parameters())
    assert not trained.inference.training


def test_exact_inference_comes_back_with_its_solver_and_tolerance(make: Make) -> None:
    about = {**FISTA, "inference": {**ITERATIVE, "tolerance": 2e-3, "max_steps": 33}}
    trained = make(about).trained
    assert isinstance(trained.inference, Iterative)
    assert (trained.inference.tolerance, trained.inference.max_steps) == (2e-3, 33)
    assert trained.inference.solver == Fista(restart=True)
    assert trained.prox == Soft(0.05)


def weighted(weights: object) -> dict[str, object]:
    return {"_target_": "dictlearn.prox.Weighted", "lambda_": 0.05, "weights": weights}


@pytest.mark.parametrize("kind", ["npy", "safetensors", "list"])
def test_weights_of_a_file_go_along_and_the_file_is_not_needed(
    kind: str, made: Made, tmp_path: Path
) -> None:
    numbers = torch.linspace(0.5, 2.0, ATOMS, dtype=torch.float64)
    file = tmp_path / f"weights.{kind}"
    if kind == "npy":
        np.save(file, numbers.numpy())
    elif kind == "safetensors":
        save_file({"w": numbers}, str(file))
    prox = weighted(numbers.tolist() if kind == "list" else str(file))
    folder = save(tmp_path / "run", made.learner, made.data, prox=prox)
    file.unlink(missing_ok=True)
    found = load(folder).prox
    assert isinstance(found, Weighted)
    x = torch.zeros(1, WIDTH)
    torch.testing.assert_close(found.penalty(x).price, 0.05 * numbers[None].float())
    assert str(tmp_path) not in (folder / "config.json").read_text()


def test_an_artefact_that_names_a_file_of_weights_still_loads(made: Made, tmp_path: Path) -> None:
    np.save(tmp_path / "w.npy", np.ones(ATOMS))
    prox = weighted(str(tmp_path / "w.npy"))
    folder = save(tmp_path / "run", made.learner, made.data, prox=prox)
    tensors, about = artifact.read(folder)
    del tensors["prox.weights"]  # as earlier versions wrote it
    about["prox"]["weights"] = prox["weights"]
    artifact.write(folder, tensors, about)
    assert isinstance(load(folder).prox, Weighted)


def test_the_package_loads_it_by_its_run_directory(made: Made) -> None:
    trained = dictlearn.load(made.folder)
    assert isinstance(trained, dictlearn.TrainedDictionary)
    assert torch.equal(trained.atoms, made.trained.atoms)


def test_the_config_says_what_a_user_needs_and_names_no_class_path(made: Made) -> None:
    config = json.loads((made.folder / "dictionary" / "config.json").read_text())
    assert config["dictionary"] == {"n_atoms": ATOMS, "width": WIDTH, "bias": True}
    assert config["prox"] == {"type": "TopK", "k": 8}
    assert config["inference"] == {"type": "Unrolled", "n_layers": 2}
    assert config["transformer"]["hidden_size"] == WIDTH
    assert config["text"]["block_length"] == 16
    assert "_target_" not in json.dumps(config)


def test_a_checkout_that_was_never_installed_saves_too(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("dictlearn.storage.saved.version", unknown)
    save(tmp_path, made.learner, made.data)
    assert load(tmp_path).about["library"] == "transformer-factors"


@pytest.mark.parametrize(
    "prox",
    [
        {"type": "os.system", "command": "true"},
        {"type": "system"},
        {"type": "Dictionary", "n_atoms": 2, "width": 2},
        {"type": "infer"},
        {"type": "Prox"},
        {"type": "Inference"},
        {"type": "TopK", "k": 8, "also": {"type": "Popen", "args": "true"}},
        {"type": "TopK", "k": 0},
        {"type": "TopK", "n": 8},
        {"k": 8},
        {"_target_": "os.system", "command": "true"},
        "TopK",
        None,
    ],
)
def test_a_config_that_names_anything_else_is_refused(
    prox: object, made: Made, tmp_path: Path
) -> None:
    """E2 the config of a dictionary names another class: refused, nothing is called."""
    told = refuse(made, tmp_path, prox=prox)
    if isinstance(prox, dict) and prox.get("type") in ("os.system", "infer", "Dictionary"):
        assert f"names {prox['type']}, which this version does not have" in told


def test_a_config_that_does_not_fit_the_tensors_is_refused(made: Made, tmp_path: Path) -> None:
    """E6 the config of a dictionary lies about its shapes: refused in one sentence."""
    about = made.trained.about
    refuse(made, tmp_path, dictionary={**about["dictionary"], "n_atoms": 63})
    refuse(made, tmp_path, dictionary={"n_atoms": ATOMS})
    refuse(made, tmp_path, dictionary=None)
    refuse(made, tmp_path, inference={"type": "Unrolled", "n_layers": 3})
    refuse(made, tmp_path, normalization="whitened")


def refuse(made: Made, place: Path, **changes: object) -> str:
    """Check that the artefact with these changes in its config is refused; return the sentence."""
    shutil.copytree(made.folder / "dictionary", place, dirs_exist_ok=True)
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(InputError) as told:
        load(place)
    assert "\n" not in str(told.value)
    return str(told.value)


def test_saving_leaves_the_dictionary_in_memory_as_it_was(made: Made, tmp_path: Path) -> None:
    before = {key: value.clone() for key, value in made.learner.state_dict().items()}
    about = {"prox": {"_target_": "dictlearn.prox.TopK", "k": 8}, "inference": {}}
    learner = made.learner
    given = json.dumps(about)
    save_dictionary(tmp_path, learner.dictionary, learner.inference, learner.normalization, about)
    assert json.dumps(about) == given
    for key, value in learner.state_dict().items():
        assert torch.equal(before[key], value)
