from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.table import Table, machine, product_error, ratio, shown, write_json


def test_a_table_is_markdown_with_a_dash_for_what_is_missing() -> None:
    table = Table("Times", ["method", "seconds"])
    table.row("ours", 0.25)
    table.row("theirs", None)
    lines = table.text().splitlines()
    assert lines[0] == "### Times"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert cells[0] == ["method", "seconds"]
    assert set("".join(cells[1])) == {"-"}
    assert cells[2:] == [["ours", "0.2500"], ["theirs", "-"]]


def test_a_row_must_have_as_many_cells_as_there_are_columns() -> None:
    with pytest.raises(AssertionError):
        Table("Times", ["method", "seconds"]).row("ours")


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (0.09521, "0.0952"),
        (12.345, "12.35"),
        (12_345.6, "12,346"),
        (3.2e-5, "3.2e-05"),
    ],
)
def test_numbers_keep_three_to_four_digits(cell: float, text: str) -> None:
    assert shown(cell) == text


def test_a_bar_is_met_on_its_own_side_only() -> None:
    assert "NOT met" not in ratio(0.6, 0.65, at_most=True)
    assert "NOT met" in ratio(0.7, 0.65, at_most=True)
    assert "NOT met" in ratio(2.4, 2.5, at_most=False)
    assert "NOT met" not in ratio(2.6, 2.5, at_most=False)
    assert ratio(None, 1.0, at_most=True) == "-"


def test_the_machine_line_names_versions_and_threads() -> None:
    line = machine("cpu", 3)
    assert "torch" in line
    assert "3 thread(s)" in line


def test_figures_are_one_flat_object(tmp_path: Path) -> None:
    write_json(tmp_path / "f.json", {"a/b": 1.5, "c": None})
    assert json.loads((tmp_path / "f.json").read_text()) == {"a/b": 1.5, "c": None}


def test_the_error_of_a_product_is_that_of_32_bits_at_the_highest_precision() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        assert 0 < product_error("cpu") < 2e-6
    finally:
        torch.set_float32_matmul_precision(before)
