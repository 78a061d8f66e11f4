"""The hub as its own client meets it, when it drops out in the middle of a text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.text.fake_hub import FILES, ROWS

READ = """
import json, time
from tests.fake_hub import nobody_waits, served
from tests.text.fake_hub import TEXTS, TextHub

with served(TextHub) as hub:
    from dictlearn.text import HubText
    from dictlearn.errors import InputError

    nobody_waits(hub)
    streamed = ("", 0), ("half", 9), ("hang", 3), ("half", -1), ("hang", -1)
    downloaded = ("half", -1), ("hang", -1)
    for number, (hub.fault, hub.times) in enumerate((*streamed, *downloaded)):
        hub.asked, began, said, texts = 0, time.monotonic(), "", []
        try:
            text = HubText("some/where", streaming=number < len(streamed))
            for document in text.documents():
                texts.append(document.text)
        except InputError as broke_off:
            said = str(broke_off)
        whole = texts == TEXTS[: len(texts)]
        print(json.dumps([whole, len(texts), hub.asked, said, time.monotonic() - began]))
"""


@pytest.mark.slow
def test_the_client_of_the_hub_is_asked_again_and_then_given_up(tmp_path: Path) -> None:
    """D4 the hub drops the connection or falls silent within a file, streamed or downloaded: asked
    again until the file comes, every document once; if it never does, one sentence within a minute.
    """
    done = subprocess.run(
        [sys.executable, "-c", READ],
        env={**os.environ, "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    usual, half, silent, *broken_off = (json.loads(line) for line in done.stdout.splitlines())
    rows = FILES * ROWS
    for found, faults in ((usual, 0), (half, 9), (silent, 3)):
        whole, n, asked, said, _ = found
        assert (whole, n, said) == (True, rows, "")
        assert asked == usual[2] + faults + (faults == 9)  # read in two attempts of ours
    given_up, not_there = broken_off[:2], broken_off[2:]
    for whole, n, _, said, seconds in given_up:
        assert (whole, n) == (True, ROWS)
        assert f"some/where (text.subset=None, text.split=train) broke off after {n} rows" in said
        assert "run again later to go on from there" in said
        assert 40 < seconds < 60
    assert len(not_there) == 2
    for _, n, _, said, seconds in not_there:
        assert n == 0
        assert "some/where (text.subset=None, text.split=train) broke off while it was down" in said
        assert "run again later, or first download it by `hf download some/where" in said
        assert 5 < seconds < 60
