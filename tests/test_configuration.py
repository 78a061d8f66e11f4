"""Configs become objects of this project and of nothing else; mistakes name the nearest key."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf

from dictlearn.configuration import (
    build,
    config_dir,
    explain,
    flat_keys,
    groups,
    known_keys,
    plain,
    spelled_out,
    targets,
)
from dictlearn.errors import InputError
from dictlearn.inference import Iterative
from dictlearn.prox import Soft, TopK

SOFT = {"_target_": "dictlearn.prox.Soft", "lambda_": 0.1}


def test_a_node_becomes_the_object_that_it_describes() -> None:
    assert build(OmegaConf.create(SOFT)) == Soft(0.1)
    node = {"_target_": "dictlearn.inference.Iterative", "max_steps": 7}
    made = build(OmegaConf.create(node | {"solver": {"_target_": "dictlearn.inference.Ista"}}))
    assert isinstance(made, Iterative)
    assert (made.max_steps, type(made.solver).__name__) == (7, "Ista")


def test_further_arguments_are_passed_on_as_they_are() -> None:
    node = OmegaConf.create({"_target_": "dictlearn.prox.TopK"})
    assert build(node, k=3) == TopK(3)


# Where a config can hide something.
FOREIGN: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "at the top": lambda bad: bad,
    "as an argument": lambda bad: {**SOFT, "lambda_": bad},
    "two levels down": lambda bad: {**SOFT, "lambda_": {"_target_": "dictlearn.x.Y", "a": bad}},
    "in a list": lambda bad: {**SOFT, "lambda_": [1, bad]},
    "in a list of lists": lambda bad: {**SOFT, "lambda_": [[{"deep": [bad]}]]},
    "below a plain mapping": lambda bad: {"anything": {"a": {"b": bad}}, **SOFT},
    "as a positional argument": lambda bad: {**SOFT, "_args_": [bad]},
}


@pytest.mark.parametrize("place", FOREIGN)
@pytest.mark.parametrize("target", ["builtins.open", "dictlearned.x", "torch.load", "torch.hub"])
def test_a_foreign_target_is_refused_at_any_depth(place: str, target: str, tmp_path: Path) -> None:
    """E2 a config names a foreign function at any depth: refused, not called."""
    marker = tmp_path / "marker"
    bad = {"_target_": target, "file": str(marker), "mode": "w"}
    with pytest.raises(InputError, match=rf"_target_: {target} is not built from a config"):
        build(OmegaConf.create(FOREIGN[place](bad)))
    assert not marker.exists()


def test_a_foreign_target_behind_an_interpolation_is_refused(tmp_path: Path) -> None:
    """E2 a config hides a foreign function behind an interpolation: refused, not called."""
    marker = tmp_path / "marker"
    config = OmegaConf.create(
        {
            "name": "builtins.open",
            "bad": {"_target_": "${name}", "file": str(marker), "mode": "w"},
            "prox": {**SOFT, "lambda_": "${bad}"},
        }
    )
    with pytest.raises(InputError, match=r"builtins\.open is not built"):
        build(config.prox)
    assert not marker.exists()


@pytest.mark.parametrize(
    "target", ["dictlearn.cli.Path.touch", "dictlearn.storage.atomic.Path", "pytorch_lightning.os"]
)
def test_a_target_that_only_passes_through_this_project_is_refused(
    target: str, tmp_path: Path
) -> None:
    """E2 a config reaches a foreign class through ours: refused, not called."""
    marker = tmp_path / "marker"
    node = {"_target_": target, "_args_": [str(marker)]}
    with pytest.raises(InputError, match="is not built from a config"):
        build(OmegaConf.create(node))


def test_a_wrong_value_is_told_as_the_class_tells_it() -> None:
    with pytest.raises(InputError, match=r"^prox\.k=0 must be at least 1\.$"):
        build(OmegaConf.create({"_target_": "dictlearn.prox.TopK", "k": 0}))


def test_an_argument_that_does_not_exist_is_named() -> None:
    with pytest.raises(InputError, match=r"no option 'q' for dictlearn\.prox\.Soft"):
        build(OmegaConf.create({**SOFT, "q": 1}))


def test_targets_are_found_at_every_depth() -> None:
    node = {"_target_": "a", "b": [{"_target_": "c"}, [{"d": {"_target_": "e"}}]], "f": "_target_"}
    assert list(targets(node)) == ["a", "c", "e"]


def test_a_plain_config_is_resolved_and_holds_only_plain_values() -> None:
    config = OmegaConf.create({"a": 2, "b": {"c": "${a}", "d": [1, "${b.c}"]}})
    assert plain(config) == {"a": 2, "b": {"c": 2, "d": [1, 2]}}
    assert type(plain(config)["b"]) is dict
    assert type(plain(config)["b"]["d"]) is list


def test_a_key_without_a_value_is_named_as_one_gives_it() -> None:
    config = OmegaConf.create({"text": {"path": "???"}})
    with pytest.raises(InputError, match=r"text\.path has no value: give it as text\.path=VALUE"):
        plain(config)


def test_an_interpolation_that_leads_nowhere_is_one_sentence() -> None:
    with pytest.raises(InputError, match="nowhere") as told:
        plain(OmegaConf.create({"a": "${nowhere}"}))
    assert "\n" not in str(told.value)


def test_the_config_folder_holds_the_commands_and_their_groups() -> None:
    assert (Path(config_dir()) / "train.yaml").is_file()
    assert (Path(config_dir()) / "encode.yaml").is_file()
    assert {"transformer", "text", "prox", "inference", "update", "trainer"} <= set(groups())
    assert groups() == sorted(groups())


def test_flat_keys_are_dotted_at_every_depth() -> None:
    assert list(flat_keys({"a": {"b": {"c": 1}}, "d": [2]})) == ["a", "a.b", "a.b.c", "d"]


def test_known_keys_are_those_of_the_options_that_were_chosen() -> None:
    default = known_keys("train")
    assert {"max_vectors", "dictionary.n_atoms", "prox.k", "inference.encoder_share"} <= set(
        default
    )
    assert "prox.lambda_" not in default
    chosen = known_keys("train", ["prox=soft", "inference=fista", "prox.lambda_=2", "seed=1"])
    assert {"prox.lambda_", "inference.tolerance"} <= set(chosen)
    assert "prox.k" not in chosen
    assert "run" in known_keys("encode")


def test_known_keys_fall_back_on_the_default_when_an_option_does_not_exist() -> None:
    assert known_keys("train", ["prox=sofft"]) == known_keys("train")


def explained(*overrides: str) -> str:
    """Compose the training config with a mistake in it, and return what is said of it."""
    with (
        initialize_config_dir(config_dir(), version_base="1.3"),
        pytest.raises(HydraException) as mistake,
    ):
        compose("train", overrides=list(overrides))
    return explain(mistake.value, "train", overrides)


def test_an_unknown_option_lists_those_of_its_group() -> None:
    told = explained("prox=sofft")
    assert told.startswith("prox=sofft is not one of batch_topk, ")
    assert told.endswith(", soft, topk, weighted. Did you mean 'soft'?")


def test_an_unknown_group_names_the_nearest() -> None:
    assert explained("infrence=fista") == (
        "There is no option 'infrence'. Did you mean 'inference'?"
    )


def test_an_option_without_its_group_names_those_that_end_so() -> None:
    told = explained("path=x")
    assert told.startswith("There is no option 'path'. Did you mean 'transformer.path' or ")
    assert explained("k=3").endswith("Did you mean 'prox.k'?")


def test_a_path_beside_stored_hidden_states_is_theirs() -> None:
    given = ["path=a b", "seed=1", "hidden_states=cached", "text.path=x"]
    assert spelled_out(given) == ["hidden_states.path=a b", *given[1:]]
    assert spelled_out(given[:2]) == given[:2]


def test_an_unknown_key_names_the_nearest_and_its_siblings() -> None:
    told = explained("prox=soft", "prox.lamda=1")
    assert told.startswith("There is no option 'prox.lamda'. Did you mean 'prox.lambda_'?")
    assert "prox has" in told
    assert "prox.k" not in told
