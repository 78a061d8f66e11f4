import sys
from pathlib import Path

import pytest

from dictlearn.errors import InputError
from dictlearn.text import InstalledDocs


def test_topics_and_modules_are_documents_in_a_stable_order() -> None:
    source = InstalledDocs(["omegaconf", "pydoc", "hydra"])
    documents = list(source.documents())
    ids = [document.id for document in documents]
    packages = [id.split(":")[0] for id in ids]
    assert packages == sorted(packages)
    assert "omegaconf:omegaconf.omegaconf" in ids
    assert any(id.startswith("pydoc:topics/") for id in ids)
    assert documents == list(InstalledDocs(["pydoc", "hydra", "omegaconf"]).documents())


def test_no_paragraph_occurs_twice() -> None:
    documents = list(InstalledDocs(["stdlib"], max_documents=60).documents())
    paragraphs = [p for document in documents for p in document.text.split("\n\n")]
    assert len(paragraphs) == len(set(paragraphs)) > 500
    assert min(len(document.text) for document in documents) >= 200


def test_what_comes_out_reads_like_english() -> None:
    text = " ".join(d.text for d in InstalledDocs(["stdlib"], max_documents=60).documents())
    words = text.lower().split()
    assert words.count("the") > 0.04 * len(words)
    assert ">>>" not in text
    assert text.count(" = ") < 1e-3 * len(words)


def test_packages_are_parsed_and_never_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = '"""' + "\n\n".join(
        f"The reader of part {n} is told what the module does." for n in range(9)
    )
    package = tmp_path / "explosive_package"
    (package / "tests").mkdir(parents=True)
    (package / "__init__.py").write_text(body + '"""\nraise RuntimeError("imported")\n')
    (package / "tests" / "helper.py").write_text(body + '"""\n')
    (package / "broken.py").write_text('"""' + "unclosed")
    monkeypatch.syspath_prepend(str(tmp_path))
    documents = list(InstalledDocs(["explosive_package"]).documents())
    assert [document.id for document in documents] == ["explosive_package:explosive_package"]
    assert "part 3 is told" in documents[0].text
    assert "explosive_package" not in sys.modules


def test_a_sub_package_is_read_alone() -> None:
    ids = [document.id for document in InstalledDocs(["torch.optim"]).documents()]
    assert ids
    assert all(id.startswith("torch:torch.optim") for id in ids)


def test_the_fingerprint_follows_the_options() -> None:
    first = InstalledDocs(["pydoc", "hydra"])
    assert first.fingerprint() == InstalledDocs(["hydra", "pydoc"]).fingerprint()
    assert first.fingerprint() != InstalledDocs(["pydoc"]).fingerprint()
    assert first.fingerprint() != InstalledDocs(["pydoc", "hydra"], max_documents=3).fingerprint()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"packages": ["nunpy"]}, r"text\.packages=nunpy is not installed here\. .*'numpy'"),
        ({"packages": ["torch.nowhere"]}, r"torch\.nowhere is not installed"),
        ({"validation_fraction": 1.0}, r"text\.validation_fraction=1\.0"),
        ({"validation_fraction": -0.1}, r"text\.validation_fraction=-0\.1"),
        ({"max_documents": 0}, r"text\.max_documents=0"),
    ],
)
def test_mistakes_are_told_in_a_sentence(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        InstalledDocs(**options)  # type: ignore[arg-type]


def test_the_default_has_enough_varied_text() -> None:
    lengths: dict[str, int] = {}
    for document in InstalledDocs().documents():
        package = document.id.split(":")[0]
        lengths[package] = lengths.get(package, 0) + len(document.text)
    assert sum(lengths.values()) > 2_500_000  # more than 500,000 tokens
    assert len(lengths) >= 8
    assert max(lengths.values()) < 0.5 * sum(lengths.values())
