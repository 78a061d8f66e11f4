"""Every config file composes, every ``_target_`` takes its keys, and what can be built here is."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from dictlearn import composing
from dictlearn.cli import _register_resolvers
from dictlearn.configuration import build, config_dir, groups, plain

CONF = Path(config_dir())
OPTIONS = [
    f"{group}={path.stem}"
    for group in groups()
    if group != "hydra"
    for path in sorted((CONF / group).glob("*.yaml"))
]
NEEDS_CUDA = {"trainer=gpu", "trainer=ddp"}


def composed(*overrides: str, out: Path) -> DictConfig:
    _register_resolvers()
    with initialize_config_dir(config_dir(), version_base="1.3"):
        config = compose("train", overrides=list(overrides), return_hydra_config=True)
    OmegaConf.update(config, "hydra.runtime.output_dir", str(out), force_add=True)
    from hydra.core.hydra_config import HydraConfig

    HydraConfig.instance().set_config(config)
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    return config


def nodes(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from nodes(value, f"{path}.{key}")


@pytest.mark.parametrize("option", OPTIONS)
def test_it_composes_and_every_key_is_an_argument(option: str, tmp_path: Path) -> None:
    config = composed(option, "text.path=x" if option in PATHS else "seed=0", out=tmp_path)
    for path, node in nodes(OmegaConf.to_container(config, resolve=True)):
        target = get_object(node["_target_"])
        given = {key: value for key, value in node.items() if not key.startswith("_")}
        if path == ".dictionary":
            given |= {"width": 8, "seed": 0}
        inspect.signature(target).bind(**given)


PATHS = {"text=local", "text=hub"}
SCORED = {"loss=auxk", "loss=matryoshka"}
PRICED = {
    f"inference={name}"
    for name in (
        *("ista", "fista", "fista_seed", "greedy_fista", "working_set", "lasso_refit"),
        *("alternating", "gated", "lista", "lista_cp", "alista"),
    )
}


@pytest.mark.parametrize("option", [o for o in OPTIONS if o not in NEEDS_CUDA])
def test_it_builds(option: str, tmp_path: Path, minilm_folder: Path, text_folder: Path) -> None:
    local = [f"transformer.path={minilm_folder}"]
    if not option.startswith("transformer="):
        local += ["transformer=local"]
    if option.startswith(("text=", "experiment=yun")):
        local += [] if option == "text=installed_docs" else [f"text.path={text_folder}"]
    if (option.startswith("prox=") and option != "prox=topk") or option in SCORED:
        local += ["inference=unrolled"]  # the default ends with a pursuit, which keeps k atoms
    if option in PRICED:
        local += ["prox=soft"]  # exact codes exist for convex penalties only
    if option == "prox=weighted":
        local += ["prox.weights=[1.0,2.0]", "dictionary.n_atoms=2"]
    if option == "hidden_states=cached":
        np.save(tmp_path / "vectors.npy", np.ones((40, 384), dtype=np.float32))
        local += [f"hidden_states.path={tmp_path / 'vectors.npy'}"]
    config = composed(option, *local, f"data_dir={tmp_path}", out=tmp_path)
    learner, data = composing.compose(config, plain(config))
    assert learner.dictionary.atoms.shape == (config.dictionary.n_atoms, 384)
    assert data.hidden_size == 384
    for node in [*config.logger.values(), *config.callbacks.values()]:
        assert build(node) is not None
    assert build(config.trainer, logger=False) is not None


@pytest.mark.parametrize("name", ["yun2021_short", "yun2021_long"])
def test_the_presets_carry_the_numbers_of_the_paper(
    name: str, tmp_path: Path, minilm_folder: Path, text_folder: Path
) -> None:
    config = composed(
        f"experiment={name}",
        f"transformer.path={minilm_folder}",
        f"text.path={text_folder}",
        out=tmp_path,
    )
    short = name == "yun2021_short"
    assert config.dictionary.n_atoms == (2000 if short else 2500)
    assert config.prox.lambda_ == (0.3 if short else 0.23)
    assert config.hidden_states.block_length == (64 if short else 128)
    assert config.hidden_states.batch_size == 100
    assert config.hidden_states.token_weight_exponent == 0.5
    assert config.hidden_states.normalize_weights is False
    assert config.max_vectors == 298_489 * 64 * 6 * 2
    learner, data = composing.compose(config, plain(config))
    assert data.layers == (0, 2, 4)  # every second of the six layers of this model
    assert learner.inference.max_steps == 500
