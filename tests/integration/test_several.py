"""The main job with `variants`: one pass over the text, a dictionary for every variant."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from omegaconf import OmegaConf

import dictlearn
from dictlearn import cli
from dictlearn.ensemble import DictionaryEnsemble
from dictlearn.errors import InputError
from dictlearn.storage.trained import TrainedDictionary
from tests.integration.test_run import run

SMALL = [
    "trainer=cpu",
    "max_vectors=6144",
    "hidden_states.batch_size=512",
    "hidden_states.layers=[0,2]",
    "hidden_states.validation_vectors=1024",
    "hidden_states.statistics_tokens=512",
    "dictionary.n_atoms=96",
    "dictionary.dead_after_vectors=1024",
    "callbacks.revival.every_vectors=1024",
    "callbacks.revival.duplicate_cosine=0.3",
    "trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=4",
    "prox=topk",
    "inference=unrolled",
    "update=adam",
    "text=local",
]
VARIANTS = "variants=[{prox.k:4},{prox.k:6,dictionary.n_atoms:128},{loss:matryoshka}]"
NAMES = ("k4", "k6_n_atoms128", "matryoshka")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("several")


def train(place: Path, text: Path, out: str, *overrides: str) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        torch.set_num_threads(1)
        cli.train([*SMALL, f"text.path={text}", f"hydra.run.dir={out}", *overrides])
    return place / out


def figures(folder: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((folder / "metrics.json").read_text())
    return found


@pytest.fixture(scope="module")
def several(place: Path, text_folder: Path) -> Path:
    """The run directory of a run with three variants."""
    return train(place, text_folder, "several", VARIANTS)


def test_every_variant_leaves_what_a_run_leaves(several: Path) -> None:
    folders = sorted((several / "variants").iterdir())
    assert [folder.name for folder in folders] == sorted(NAMES)
    for folder in folders:
        for name in (
            "dictionary/dictionary.safetensors",
            "dictionary/config.json",
            "metrics.json",
            "factors.html",
            ".hydra/config.yaml",
        ):
            assert (folder / name).stat().st_size > 0, name
    assert not (several / "dictionary").exists()
    assert not (several / "factors.html").exists()


def test_figures_are_prefixed_and_those_of_the_best_are_plain_too(several: Path) -> None:
    found = figures(several)
    fvu = {name: found[f"{name}/val/fvu"] for name in NAMES}
    assert found["val/fvu"] == min(fvu.values())
    assert len(set(fvu.values())) == 3
    for name in NAMES:
        own = figures(several / "variants" / name)
        assert own["val/fvu"] == fvu[name]
        assert own["train/vectors"] == found["train/vectors"] == 6144
        assert not any(key.startswith(NAMES) for key in own)
    with (several / "metrics.csv").open() as file:
        columns = csv.DictReader(file).fieldnames or []
    assert {f"{name}/{key}" for name in NAMES for key in ("val/fvu", "train/l0")} <= set(columns)


def test_a_variant_is_bit_by_bit_the_run_of_its_own(
    several: Path, place: Path, text_folder: Path
) -> None:
    options = ["prox.k=6", "dictionary.n_atoms=128"]
    alone = train(place, text_folder, "alone", *options)
    there, here = dictlearn.load(several / "variants" / "k6_n_atoms128"), dictlearn.load(alone)
    assert torch.equal(there.atoms, here.atoms)
    own, found = figures(alone), figures(several / "variants" / "k6_n_atoms128")
    held_out = {key: value for key, value in own.items() if key.startswith("val/")}
    assert held_out == {key: value for key, value in found.items() if key.startswith("val/")}
    mine, expected = (
        cast(
            "dict[str, Any]", OmegaConf.to_container(OmegaConf.load(folder / ".hydra/config.yaml"))
        )
        for folder in (several / "variants" / "k6_n_atoms128", alone)
    )
    for key in ("prox", "dictionary", "inference", "update", "loss", "seed", "variants"):
        assert mine[key] == expected[key], key
    assert "replaced" in (alone / "run.log").read_text()


def test_a_variant_can_be_used_and_evaluated(
    several: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: TrainedDictionary = dictlearn.load(several / "variants" / "k4")
    codes: Any = trained.encode(torch.randn(5, 384), layer=2)
    assert int((codes > 0).sum(1).max()) <= 4
    run = several / "variants" / "k4"
    cli.evaluate(["inference", f"run={run}", "methods=[omp]", "l0=[4]", "vectors=256"])
    assert "omp" in capsys.readouterr().out
    assert (run / "evaluation" / "inference.json").is_file()


def test_the_table_at_the_end_and_the_log_name_every_variant(
    several: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dictlearn.summary import show

    show(several, figures(several))
    printed = capsys.readouterr().out
    for name in NAMES:
        (row,) = [line for line in printed.splitlines() if f"variants/{name}" in line]
        assert f"{figures(several)[f'{name}/val/fvu']:.4f}" in row
    log = (several / "run.log").read_text()
    assert log.count("k4: step 12 of 12: held-out FVU") == 1


def test_a_directory_of_several_says_where_the_dictionaries_are(several: Path) -> None:
    with pytest.raises(InputError, match=r"holds several dictionaries: give one of .*variants/k4"):
        dictlearn.load(several)


def test_what_may_not_vary_is_refused_before_anything_is_loaded(
    place: Path, text_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        train(place, text_folder, "wrong", "variants={hidden_states.layers:[0,1]}")
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "variants: hidden_states.layers cannot vary" in said
    assert said.count("\n") == 1
    assert not (place / "wrong").exists()


COUNTS = "variants={prox.k:[4,6,12]}"
BRANCHED = [COUNTS, "branch_at=0.5", "callbacks.checkpoint.every_steps=2"]


def break_off(place: Path, text: Path, out: str) -> None:
    """Begin a run that ends with an error in its fifth step."""
    step = DictionaryEnsemble.training_step

    def breaking(self: DictionaryEnsemble, batch: Any, batch_idx: int) -> torch.Tensor:
        if batch_idx == 4:
            raise RuntimeError("broken off")
        return step(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DictionaryEnsemble, "training_step", breaking)
        with pytest.raises(RuntimeError, match="broken off"):
            train(place, text, out, *BRANCHED)


@pytest.fixture(scope="module")
def branched(place: Path, text_folder: Path) -> Path:
    """The run directory of a run whose variants begin as one, and that broke off before."""
    break_off(place, text_folder, "branched")
    assert [folder.name for folder in (place / "branched/variants").iterdir()] == ["k6"]
    return train(place, text_folder, "branched", *BRANCHED)


def test_variants_that_begin_as_one_leave_each_its_own(
    branched: Path, place: Path, text_folder: Path
) -> None:
    found = figures(branched)
    assert {f"k{k}/val/fvu" for k in (4, 6, 12)} <= set(found)
    assert found["k4/val/fvu"] > found["k6/val/fvu"] > found["k12/val/fvu"]
    for k in (4, 6, 12):
        assert (branched / f"variants/k{k}/factors.html").stat().st_size > 0
        codes = dictlearn.load(branched / f"variants/k{k}").encode(torch.randn(9, 384), layer=2)
        assert int((codes > 0).sum(1).max()) <= k
    alone = train(place, text_folder, "k6", "prox.k=6")
    assert torch.equal(dictlearn.load(branched / "variants/k6").atoms, dictlearn.load(alone).atoms)
    with (branched / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    steps = {k: [int(row["step"]) for row in rows if row[f"k{k}/train/l0"]] for k in (4, 6)}
    assert steps == {4: [7, 11], 6: [3, 7, 11]}
    log = (branched / "run.log").read_text()
    assert log.count("The dictionaries go on each by itself from step 6") == 1


def test_a_run_that_ends_before_they_part_leaves_the_middle_one_and_says_so(
    place: Path, text_folder: Path
) -> None:
    ended = train(place, text_folder, "early", *BRANCHED, "+trainer.max_steps=4")
    assert [folder.name for folder in (ended / "variants").iterdir()] == ["k6"]
    assert {key.split("/")[0] for key in figures(ended) if key.startswith("k")} == {"k6"}
    assert dictlearn.load(ended / "variants" / "k6").atoms.shape == (96, 384)
    log = (ended / "run.log").read_text()
    assert "The run ends before the variants part: there is no k12, k4." in log
    assert log.count("The dictionary is in") == 1


def test_what_would_part_elsewhere_is_not_gone_on_with_unsaid(
    place: Path, text_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    break_off(place, text_folder, "elsewhere")
    with pytest.raises(SystemExit):
        train(place, text_folder, "elsewhere", COUNTS, "branch_at=0.25")
    assert "began with branch_at=0.5 and now has 0.25" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_part_what_they_hold_together(
    branched: Path, place: Path, text_folder: Path
) -> None:
    both = ["trainer=dictionary_parallel", "trainer.accelerator=cpu", "trainer.devices=2"]
    given = [*SMALL[1:], *both, f"text.path={text_folder}", *BRANCHED]
    done = run(place, *given, "hydra.run.dir=parted")
    assert done.returncode == 0, done.stdout + done.stderr
    for k in (4, 6, 12):
        found, expected = (figures(out / f"variants/k{k}") for out in (place / "parted", branched))
        assert found["val/fvu"] == pytest.approx(expected["val/fvu"], rel=1e-2)


@pytest.mark.slow
def test_two_processes_hold_every_variant_together(
    several: Path, place: Path, text_folder: Path
) -> None:
    both = ["trainer=dictionary_parallel", "trainer.accelerator=cpu", "trainer.devices=2"]
    given = [*SMALL[1:], *both, f"text.path={text_folder}", "hydra.run.dir=shared", VARIANTS]
    done = run(place, *given)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in NAMES:
        found, expected = (figures(out / "variants" / name) for out in (place / "shared", several))
        assert found["val/fvu"] == pytest.approx(expected["val/fvu"], rel=1e-2)
        atoms = dictlearn.load(place / "shared" / "variants" / name).atoms
        assert atoms.shape == dictlearn.load(several / "variants" / name).atoms.shape
