"""What `variants` asks for: names, configs, and what may not vary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from dictlearn import composing
from dictlearn.configuration import plain
from dictlearn.errors import InputError
from dictlearn.variants import branch_of, own_figures, variant_configs
from tests.test_configs import composed


def configs(out: Path, *overrides: str) -> dict[str, DictConfig]:
    return variant_configs(composed(*overrides, out=out))


def chosen(config: DictConfig, *keys: str) -> list[Any]:
    return [OmegaConf.select(config, key) for key in keys]


def test_without_variants_there_are_none(tmp_path: Path) -> None:
    for nothing in ("seed=0", "variants=null", "variants=[]", "variants={}"):
        assert configs(tmp_path, nothing) == {}


def test_a_mapping_is_a_grid(tmp_path: Path) -> None:
    made = configs(tmp_path, "variants={prox.k:[16,64],seed:[0,7]}", "dictionary.n_atoms=500")
    assert list(made) == ["k16_seed0", "k16_seed7", "k64_seed0", "k64_seed7"]
    keys = ("prox.k", "seed", "callbacks.revival.seed", "dictionary.n_atoms", "variants")
    assert chosen(made["k64_seed7"], *keys) == [64, 7, 7, 500, None]
    assert chosen(made["k16_seed0"], *keys) == [16, 0, 0, 500, None]
    (alone,) = configs(tmp_path, "variants={prox.k:[16]}", "branch_at=0.5").values()
    assert alone.branch_at is None  # of a run of its own


def test_one_value_need_not_be_a_list(tmp_path: Path) -> None:
    assert list(configs(tmp_path, "variants={prox.k:[16,64],seed:3}")) == ["k16_seed3", "k64_seed3"]


def test_a_list_has_a_mapping_for_every_variant(tmp_path: Path) -> None:
    made = configs(
        tmp_path, "variants=[{},{prox.k:16},{dictionary.n_atoms:99,inference.distil:codes}]"
    )
    assert list(made) == ["base", "k16", "n_atoms99_distil-codes"]
    assert chosen(made["base"], "prox.k", "dictionary.n_atoms") == [32, 3072]


def test_options_of_groups_may_vary_and_come_before_values(tmp_path: Path) -> None:
    made = configs(
        tmp_path,
        "dictionary.n_atoms=500",
        "variants=[{prox.lambda_:0.1,prox:soft,inference:working_set,update:hessian_diagonal},"
        "{prox:topk,prox.sampled:[8,32]}]",
    )
    first, second = made.values()
    assert list(made) == [
        "lambda0.1_soft_working_set_hessian_diagonal",
        "topk_sampled-8-32",
    ]
    assert chosen(first, "prox._target_", "prox.lambda_", "dictionary.n_atoms", "variants") == [
        "dictlearn.prox.Soft",
        0.1,
        500,
        None,
    ]
    assert chosen(second, "prox._target_", "prox.k", "inference.encoder_share") == [
        "dictlearn.prox.TopK",
        32,
        0.15,
    ]
    assert second.prox.sampled == [8, 32]


def test_equal_names_get_numbers(tmp_path: Path) -> None:
    made = configs(tmp_path, "variants=[{update.first.lr:0.1},{update.then.lr:0.1}]")
    assert list(made) == ["lr0.1", "lr0.1-2"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("{transformer.path:[a,b]}", r"variants: transformer\.path cannot vary.*one stream"),
        ("{hidden_states.batch_size:[1,2]}", r"hidden_states\.batch_size cannot vary.*seed and"),
        ("{max_vectors:[10,20]}", r"max_vectors cannot vary"),
        ("{pros.k:[1,2]}", r"pros\.k cannot vary.*Did you mean 'prox\.k'\?"),
        ("{prox.kk:[1,2]}", r"There is no option 'prox\.kk'\. Did you mean 'prox\.k'\?"),
        ("{prox:[topk,softt]}", r"prox=softt is not one of .*Did you mean 'soft'\?"),
        ("[{prox:soft,prox.k:3}]", r"There is no option 'prox\.k'"),
        ("[{prox:{k:3}}]", r"prox must name an option of the group, not \{'k': 3\}"),
        ("[prox.k]", r"variants\[0\]=prox\.k is no mapping: write variants="),
        ("16", r"variants=16 is neither a mapping nor a list"),
        ("{prox.k:[]}", r"variants=.* lists no value"),
        ("{prox.k:[16,16]}", r"prox\.k=16 is there twice"),
    ],
)
def test_a_mistake_is_one_sentence(asked: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as found:
        configs(tmp_path, f"variants={asked}")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["branch_at=0.5", "variants={}"], r"branch_at=0\.5 needs variants that part there"),
        (
            ["branch_at=0.5", "variants=[{prox.sampled:[4,8]}]"],
            r"and these in prox\.sampled: leave",
        ),
        (["branch_at=0.5"], r"branch_at=0\.5 needs variants that part there: write variants="),
        (["branch_at=1", "variants={prox.k:[8,9]}"], r"branch_at=1 leaves the variants no step"),
        (["branch_at=-1", "variants={prox.k:[8,9]}"], r"branch_at=-1 must be in \[0\.0, 1\.0\]"),
        (["branch_at=a", "variants={prox.k:[8,9]}"], r"branch_at must be a finite number"),
        (["branch_at=0.5", "variants={seed:[0,1]}"], r"below prox, and these in seed: leave it"),
        (["branch_at=0.5", "variants=[{prox:topk},{}]"], r"and these in prox: leave it out"),
    ],
)
def test_what_cannot_begin_as_one_is_refused(
    asked: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        branch_of(composed(*asked, out=tmp_path))


def test_variants_may_begin_as_one(tmp_path: Path) -> None:
    for asked, share in (("null", 0.0), ("0", 0.0), ("0.25", 0.25)):
        config = composed(f"branch_at={asked}", "variants={prox.k:[8,9]}", out=tmp_path)
        found = branch_of(config)
        given = (config, plain(config), variant_configs(config), found)
        made, _ = composing.compose_several(*given)
        assert found == share
        assert made.branch_at == share


def test_a_wrong_value_names_the_variant(tmp_path: Path, minilm_folder: Path) -> None:
    config = composed("variants={prox.k:[16,5000]}", out=tmp_path)
    with pytest.raises(InputError, match=r"variant k5000: .*5000"):
        composing.compose_several(config, plain(config), variant_configs(config))


def test_the_learners_are_those_of_the_configs(tmp_path: Path) -> None:
    config = composed("variants={prox.k:[16,64],seed:[0,7]}", "dictionary.n_atoms=99", out=tmp_path)
    made, data = composing.compose_several(config, plain(config), variant_configs(config))
    part = made.parts["k64_seed7"]
    assert (part.prox.k, part.seed, part.dictionary.seed, data.seed) == (64, 7, 7, 0)  # type: ignore[attr-defined]
    assert part.hparams["config"]["prox"]["k"] == 64
    assert part.dictionary.n_atoms == 99


def test_the_figures_of_a_variant_are_its_own_and_those_of_the_run() -> None:
    figures = {"val/fvu": 0.1, "a/val/fvu": 0.2, "b/val/fvu": 0.1, "train/vectors": 9.0}
    assert own_figures(figures, "a") == {"val/fvu": 0.2, "train/vectors": 9.0}
    assert own_figures(figures, "") == figures
