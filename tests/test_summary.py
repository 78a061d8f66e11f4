"""The tables in the terminal: the figures are those given, the paths those that exist."""

import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from dictlearn.errors import InputError
from dictlearn.storage.saved import load
from dictlearn.summary import show, show_factors
from tests.small_run import save, small_data, small_learner, small_trainer

FIGURES = {
    "val/fvu": 0.2345,
    "val/l0": 7.96,
    "val/fvu_layer_0": 0.1111,
    "val/l0_layer_0": 6.06,
    "val/fvu_layer_3": 0.3333,
    "val/l0_layer_3": 8.0,
    "val/fvu_layer_11": 0.4444,
    "val/l0_layer_11": 9.26,
    "val/cosine": 0.8765,
    "val/dead_fraction": 0.0625,
    "train/vectors": 2_000_000.0,
    "train/vectors_per_second": 12_345.6,
    "seconds/total": 161.7,
}


def rows(printed: str) -> list[list[str]]:
    """Return the cells of the table's lines that end with a number."""
    cells = (re.findall(r"[\w.,%/:-]+", line) for line in printed.splitlines())
    return [line for line in cells if len(line) == 3 and re.fullmatch(r"[\d.]+", line[-1])]


def test_every_layer_has_its_row_in_the_order_of_the_layers_and_the_last_is_of_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show(tmp_path, FIGURES)
    assert rows(capsys.readouterr().out) == [
        ["0", "0.1111", "6.1"],
        ["3", "0.3333", "8.0"],
        ["11", "0.4444", "9.3"],
        ["all", "0.2345", "8.0"],
    ]


def test_the_lines_below_say_cosine_dead_atoms_vectors_speed_and_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show(tmp_path, FIGURES)
    printed = " ".join(capsys.readouterr().out.split())
    assert "cosine 0.876, dead atoms 6.2%" in printed
    assert "2,000,000 vectors, 12,346 a second, 162 s in all" in printed


def test_only_paths_that_exist_are_shown_and_never_broken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / ("a [bold] folder " + "with a long name " * 8)
    (run / "dictionary").mkdir(parents=True)
    (run / "metrics.json").write_text("{}")
    show(run, FIGURES)
    lines = capsys.readouterr().out.splitlines()
    assert any(re.match(r"run: +" + re.escape(str(run)) + "$", line) for line in lines)
    assert any(line.endswith(str(run / "metrics.json")) for line in lines)
    assert any(line.endswith(str(run / "dictionary")) for line in lines)
    assert "factors.html" not in "".join(lines)


def test_without_held_out_text_there_is_no_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show(tmp_path, {key: value for key, value in FIGURES.items() if not key.startswith("val/")})
    printed = capsys.readouterr().out
    assert "FVU" not in printed
    assert "2,000,000 vectors" in printed


@pytest.fixture(scope="module")
def run(minilm_folder: Path, text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with the dictionary of two training steps."""
    place = tmp_path_factory.mktemp("summary")
    data = small_data(minilm_folder, text_folder, place, steps=2)
    learner = small_learner(data)
    small_trainer(place).fit(learner, datamodule=data)
    save(place / "run" / "dictionary", learner, data)
    return place / "run"


def ask(folder: Path, sentence: str = "The old bank.", **given: object) -> None:
    values = {"run": str(folder), "top": 2, "layers": "all", **given}
    show_factors(OmegaConf.create(values), sentence)


def test_the_strongest_factors_of_every_token_are_shown_layer_by_layer(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(run)
    printed = capsys.readouterr().out
    found = load(run).encode_text("The old bank.")
    parts = re.split(r"hidden state (\d+)", printed)[1:]
    assert parts[::2] == ["0", "3"]
    for codes, part in zip(found.codes, parts[1::2], strict=True):
        values, atoms = codes.topk(2)
        for token, strengths, factors in zip(
            found.tokens, values.tolist(), atoms.tolist(), strict=True
        ):
            (line,) = [
                line for line in part.splitlines() if re.search(rf" {re.escape(token)} ", line)
            ]
            cells = [f"{atom}:{value:.2f}" for atom, value in zip(factors, strengths, strict=True)]
            assert re.findall(r"\d+:[\d.]+", line) == cells


def test_only_the_layers_asked_for_are_shown(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask(run, layers=[3])
    assert re.findall(r"hidden state (\d+)", capsys.readouterr().out) == ["3"]


def test_square_brackets_in_a_text_are_no_markup(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(run, sentence="a [b] c", layers=[0])
    assert re.search(r" \[ .* b .* \] ", capsys.readouterr().out, flags=re.DOTALL)


def test_no_more_factors_than_atoms_are_shown(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(run, sentence="bank", top=1000, layers=[0])
    assert 1 <= len(re.findall(r"\d+:\d", capsys.readouterr().out)) <= 8


@pytest.mark.parametrize(
    ("given", "pattern"),
    [
        ({"sentence": ""}, 'give a sentence as text="..."'),
        ({"sentence": " \n"}, "no token"),
        ({"layers": [0, 2]}, r"layers=\[2\].*\(0, 3\)"),
        ({"layers": "every"}, r"layers=every must be all or a list out of \(0, 3\)"),
        ({"top": 0}, "top=0"),
        ({"run": Path("nowhere")}, "no trained dictionary at nowhere"),
    ],
)
def test_what_cannot_be_shown_is_told_in_one_sentence(
    given: dict[str, Any], pattern: str, run: Path
) -> None:
    with pytest.raises(InputError, match=pattern):
        ask(given.pop("run", run), **given)
