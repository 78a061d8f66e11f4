"""Text for runs of seconds."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def few_texts(tmp_path_factory: pytest.TempPathFactory, topics: dict[str, str]) -> Path:
    """A folder of 12 text files, about 10,000 tokens."""
    folder = tmp_path_factory.mktemp("few")
    for name in sorted(topics)[:12]:
        (folder / f"{name}.txt").write_text(topics[name], encoding="utf-8")
    return folder
