import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dictlearn.errors import InputError
from dictlearn.text import HubText, LocalText
from tests.text.conftest import sentences

ROWS = ["", " = One = \n", " Words . \n", " = = Part = = \n", " = Two = \n", " More . \n"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A downloaded dataset: a folder with a file for each split."""
    place = tmp_path / "dataset"
    place.mkdir()
    for split in ("train", "validation"):
        rows = [{"text": row, "id": n} for n, row in enumerate([*ROWS, f" In {split} . \n"])]
        (place / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return place


def texts(path: Path | str, **options: Any) -> dict[str, str]:
    return {document.id: document.text for document in HubText(str(path), **options).documents()}


def test_rows_of_one_split_are_documents(folder: Path) -> None:
    found = texts(folder, split="validation")
    assert found == {
        f"{folder}/validation#{n}": row
        for n, row in enumerate([*ROWS[1:], " In validation . \n"], 1)
    }


def test_rows_of_wikitext_are_joined_to_articles(folder: Path) -> None:
    found = texts(folder, split_documents="headings", min_characters=20)
    assert list(found.values()) == [
        " = One = \n Words . \n = = Part = = ",
        " = Two = \n More . \n In train . ",
    ]
    assert len(texts(folder, split_documents="headings", max_documents=1)) == 1


def test_a_subset_is_a_sub_folder_or_left_out(folder: Path) -> None:
    inner = folder / "wikitext-x"
    inner.mkdir()
    (inner / "train.jsonl").write_text(json.dumps({"text": "Of the subset."}))
    assert list(texts(folder, subset="wikitext-x").values()) == ["Of the subset."]
    (inner / "train.jsonl").unlink()
    inner.rmdir()
    assert len(texts(folder, subset="wikitext-x")) == 6


def test_a_saved_dataset_is_read(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_dict({"text": ["One row.", "Two rows."]})
    rows.save_to_disk(str(tmp_path / "alone"))
    DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "splits"))
    assert list(texts(tmp_path / "alone").values()) == ["One row.", "Two rows."]
    assert list(texts(tmp_path / "splits").values()) == ["One row.", "Two rows."]
    with pytest.raises(InputError, match=r"text\.split=test is not one of train"):
        texts(tmp_path / "splits", split="test")
    with pytest.raises(InputError, match="text=hub"):
        list(LocalText(str(tmp_path / "alone")).documents())


def test_files_of_this_machine_are_read_as_local_text(tmp_path: Path) -> None:
    file = tmp_path / "wiki.txt"
    file.write_text("".join(f" = Title {n} = \n\n {sentences(0, 40)} \n\n" for n in range(3)))
    options: dict[str, Any] = {"subset": "wikitext-103-v1", "split_documents": "headings"}
    found = texts(file, min_characters=2000, **options)
    assert found == {d.id: d.text for d in LocalText(str(file)).documents()}
    assert len(found) == 3
    assert texts(tmp_path, **options) == found
    assert HubText(str(file), **options).fingerprint() == LocalText(str(file)).fingerprint()
    file.write_text("\n\n".join(sentences(n, n + 9) for n in range(20)))
    assert len(texts(file, min_characters=2000, **options)) > 2
    table = tmp_path / "rows.jsonl"
    table.write_text("\n".join(json.dumps({"text": row}) for row in ROWS))
    assert len(texts(table, **options)) == 2
    assert len(texts(table)) == 5


def test_the_fingerprint_follows_files_and_options(folder: Path) -> None:
    first = HubText(str(folder)).fingerprint()
    assert HubText(str(folder)).fingerprint() == first
    assert HubText(str(folder), streaming=True).fingerprint() == first
    assert HubText(str(folder), split="validation").fingerprint() != first
    (folder / "train.jsonl").write_text(json.dumps({"text": "Other."}))
    assert HubText(str(folder)).fingerprint() != first
    named = HubText("some/where", revision="a").fingerprint()
    assert named != HubText("some/where", revision="b").fingerprint()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"column": "texts"}, r"text\.column=texts .* has text, id\. .*'text'"),
        ({"column": "id"}, r"text\.column=id .* holds int, not text"),
        ({"split": "test"}, r"text\.split=test.* cannot be read: .*validation"),
        ({"min_characters": 999}, r"holds no text of at least text\.min_characters=999"),
        ({"split_documents": "heading"}, r"text\.split_documents=heading .*'headings'"),
    ],
)
def test_mistakes_are_told_in_a_sentence(
    folder: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as told:
        texts(folder, **options)
    assert "\n" not in str(told.value)


def test_a_damaged_dataset_is_named(folder: Path) -> None:
    """D4 a file of a downloaded dataset is damaged: one sentence that names it."""
    (folder / "train.jsonl").write_text('{"text": bad')
    with pytest.raises(InputError, match=r"dataset.* cannot be read"):
        texts(folder)


def test_a_missing_file_is_not_asked_of_the_hub(tmp_path: Path) -> None:
    for path in (str(tmp_path / "corpus"), "./corpus", "corpus.txt"):
        with pytest.raises(InputError, match="does not exist"):
            texts(path)


def test_without_network_the_way_around_it_is_told_soon(tmp_path: Path) -> None:
    """In a process of its own: the address of the hub is read when its library is imported."""
    code = (
        "from dictlearn.text import HubText\n"
        "from dictlearn.errors import InputError\n"
        "try:\n"
        "    list(HubText('Salesforce/wikitext', 'wikitext-103-v1').documents())\n"
        "except InputError as error:\n"
        "    print(error)\n"
    )
    # Port 9 of this machine (discard): nobody listens, with or without a network.
    address = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **address},
        capture_output=True,
        text=True,
        check=True,
    )
    assert time.monotonic() - started < 60
    assert "text.path=Salesforce/wikitext is not on this machine" in done.stdout
    assert "hf download Salesforce/wikitext --repo-type dataset --local-dir" in done.stdout
    assert done.stdout.count("\n") == 1
