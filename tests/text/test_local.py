import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as arrow  # type: ignore[import-untyped]
import pytest
from pyarrow import parquet

from dictlearn.errors import InputError
from dictlearn.text import LocalText
from tests.text.conftest import sentences

ARTICLE = " = Title {} = \n\n = = Part = = \n\n {} \n\n"


def texts(path: Path | str, **options: Any) -> dict[str, str]:
    return {document.id: document.text for document in LocalText(str(path), **options).documents()}


def write_parquet(path: Path, **columns: list[Any]) -> Path:
    parquet.write_table(arrow.table(columns), path)
    return path


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_a_wikitext_file_is_cut_into_articles(tmp_path: Path) -> None:
    file = tmp_path / "wiki.txt"
    file.write_text("".join(ARTICLE.format(n, sentences(0, n)) for n in range(1, 5)))
    found = texts(file)
    assert list(found) == ["wiki.txt#0", "wiki.txt#1", "wiki.txt#2", "wiki.txt#3"]
    assert found["wiki.txt#2"].startswith(" = Title 3 = \n")
    assert "".join(found.values()).replace("\n", "") == file.read_text().replace("\n", "")


def test_a_plain_file_is_cut_into_sections_and_several_are_documents(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("\n\n".join(sentences(n, n + 9) for n in range(40)))
    assert len(texts(tmp_path / "b.txt")) > 5
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "a.md").write_text("Some words.")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "c.txt").write_text("Not these words.")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    assert list(texts(tmp_path)) == ["b.txt#0", "deep/er/a.md#0"]
    assert list(texts(tmp_path / "**" / "*.md")) == ["deep/er/a.md#0"]
    assert len(texts(tmp_path, split_documents="section")) > 5
    assert list(texts(tmp_path / "b.txt", split_documents="file")) == ["b.txt#0"]


def test_rows_of_tables_are_documents(tmp_path: Path) -> None:
    rows = [{"text": "The first row."}, {"text": None}, {"text": "The third \ud800 row."}]
    jsonl = write_jsonl(tmp_path / "a.jsonl", rows)
    (tmp_path / "b.json").write_text(json.dumps(rows))
    write_parquet(tmp_path / "c.parquet", text=["The first row.", None, "The third row."])
    expected = {"#0": "The first row.", "#2": "The third \ud800 row."}
    assert texts(jsonl) == {f"a.jsonl{id}": text for id, text in expected.items()}
    assert texts(tmp_path / "b.json") == {f"b.json{id}": text for id, text in expected.items()}
    assert list(texts(tmp_path)) == [
        f"{n}#{i}" for n in ("a.jsonl", "b.json", "c.parquet") for i in (0, 2)
    ]


def test_another_column_is_read_when_asked_for(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "a.parquet", id=[1, 2], body=["One text.", "Another text."])
    assert list(texts(file, column="body").values()) == ["One text.", "Another text."]


def test_rows_of_wikitext_are_joined_to_articles(tmp_path: Path) -> None:
    rows = ["", " = One = \n", " Words . \n", " = = Part = = \n", " = Two = \n", " More . \n"]
    file = write_parquet(tmp_path / "wiki.parquet", text=rows)
    found = texts(file, split_documents="heading")
    assert list(found.values()) == [" = One = \n Words . \n = = Part = = ", " = Two = \n More . "]


def test_compressed_files_are_read(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write('{"text": "A compressed row."}\n')
    with gzip.open(tmp_path / "b.txt.gz", "wt") as file:
        file.write("A compressed line.\n")
    assert list(texts(tmp_path).values()) == ["A compressed row.", "A compressed line."]


def test_line_ends_of_windows_and_a_byte_order_mark_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfOne.\r\nTwo.\r\n")
    assert list(texts(tmp_path / "a.txt").values()) == ["One.\nTwo."]


def test_limits_hold(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [{"text": "x" * n} for n in range(20)])
    assert [len(t) for t in texts(file, min_characters=5, max_documents=3).values()] == [5, 6, 7]


def test_the_fingerprint_follows_the_content_and_the_options(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("One text.")
    first = LocalText(str(file)).fingerprint()
    os.utime(file, (1, 1))
    assert LocalText(str(file)).fingerprint() == first
    assert LocalText(str(file), min_characters=3).fingerprint() != first
    assert LocalText(str(file), validation_fraction=0.5).fingerprint() == first
    file.write_text("Two text.")
    assert LocalText(str(file)).fingerprint() != first


def mistakes(folder: Path) -> dict[str, tuple[dict[str, Any], str]]:
    (folder / "empty.txt").write_text(" \n\n")
    (folder / "latin.txt").write_bytes(b"Gr\xfc\xdfe\n")
    (folder / "late.txt").write_bytes(b"abc\n" * 10 + b"\xff")
    (folder / "corrupt.parquet").write_bytes(b"PAR1 no table PAR1")
    (folder / "corrupt.jsonl").write_text('{"text": "good"}\n{"text": bad}\n')
    (folder / "two.jsonl").write_text('{"text": "one"}\n{"text": "two"}, {"text": "three"}\n')
    (folder / "list.jsonl").write_text("[1, 2]\n")
    write_parquet(folder / "flipped.parquet", text=["Not only letters."])
    flipped = (folder / "flipped.parquet").read_bytes().replace(b"only", b"\xff\xff\xff\xff")
    (folder / "flipped.parquet").write_bytes(flipped)
    (folder / "corrupt.txt.gz").write_bytes(b"no gzip")
    (folder / "corpus.txt").write_text("Text.")
    (folder / "nothing").mkdir()
    write_jsonl(folder / "rows.jsonl", [{"txet": "A", "id": 3}])
    write_parquet(folder / "rows.parquet", body=["A"], id=[3])
    return {
        "missing": ({"path": "corpos.txt"}, r"corpos\.txt does not exist.*'corpus\.txt'"),
        "no folder": ({"path": "no/where.txt"}, r"where\.txt does not exist\. Nor does .*no\."),
        "no match": ({"path": "*.xyz"}, r"\*\.xyz matches no file"),
        "no text file": ({"path": "nothing"}, r"nothing is a folder without txt"),
        "empty": ({"path": "empty.txt"}, r"empty\.txt holds no text"),
        "too short": ({"path": "corpus.txt", "min_characters": 9}, r"text\.min_characters=9"),
        "latin": ({"path": "latin.txt"}, r"latin\.txt is not UTF-8 text: byte 2 is 0xfc"),
        "late": ({"path": "late.txt"}, r"late\.txt is not UTF-8 text: byte 40 is 0xff"),
        "parquet": ({"path": "corrupt.parquet"}, r"corrupt\.parquet cannot be read as parquet"),
        "jsonl": ({"path": "corrupt.jsonl"}, r"corrupt\.jsonl, line 2 is not valid JSON"),
        "flipped": ({"path": "flipped.parquet"}, r"flipped\.parquet cannot be read as parquet"),
        "two": ({"path": "two.jsonl"}, r"two\.jsonl, line 2 is not valid JSON"),
        "list": ({"path": "list.jsonl"}, r"list\.jsonl, line 1 holds a list"),
        "gzip": ({"path": "corrupt.txt.gz"}, r"corrupt\.txt\.gz cannot be read"),
        "column": ({"path": "rows.jsonl"}, r"text\.column=text .* which has txet, id\. .*'txet'"),
        "parquet column": ({"path": "rows.parquet"}, r"which has body, id"),
        "not text": ({"path": "rows.parquet", "column": "id"}, r"holds int, not text"),
    }


MISTAKES = (
    *("missing", "no folder", "no match", "no text file", "empty", "too short", "latin", "late"),
    *("parquet", "flipped", "jsonl", "two", "list", "gzip", "column", "parquet column", "not text"),
)


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_in_a_sentence(name: str, tmp_path: Path) -> None:
    options, message = mistakes(tmp_path)[name]
    path = str(tmp_path / options.pop("path"))
    with pytest.raises(InputError, match=message) as told:
        texts(path, **options)
    assert "\n" not in str(told.value)
    assert path.rsplit("/", 1)[1] in str(told.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    file = tmp_path / "secret.txt"
    file.write_text("Text.")
    file.chmod(0)
    if os.access(file, os.R_OK):  # root reads everything: take a file that refuses even root
        file.unlink()
        file.symlink_to("/proc/self/mem")
        if not file.is_file():
            pytest.skip("no unreadable file to be had")
    with pytest.raises(InputError, match=r"secret\.txt cannot be read"):
        texts(file)
    with pytest.raises(InputError, match=r"secret\.txt cannot be read"):
        LocalText(str(file)).fingerprint()


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(InputError, match=r"text\.split_documents=headings .*'heading'"):
        LocalText("a.txt", split_documents="headings")
    with pytest.raises(InputError, match=r"text\.min_characters=-1"):
        LocalText("a.txt", min_characters=-1)
