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
from tests.text.fake_hub import TEXTS, served

with served() as hub:
    from dictlearn.text import HubText, steady
    from dictlearn.text.documents import Unfinished

    # Nobody waits, but all believe that they did: we and the hub's client between attempts, and
    # the client for an answer.
    patience, steady.SILENCE = steady.SILENCE, 0.2
    slept = 0.0
    real = time.monotonic

    def sleep(seconds):
        global slept
        slept += seconds

    time.sleep, time.monotonic = sleep, lambda: real() + slept + patience * hub.silent
    for hub.fault, hub.times in (("", 0), ("half", 9), ("hang", 3), ("half", -1), ("hang", -1)):
        hub.asked, began, said, texts = 0, time.monotonic(), "", []
        try:
            for document in HubText("some/where", streaming=True).documents():
                texts.append(document.text)
        except Unfinished as broke_off:
            said = str(broke_off)
        whole = texts == TEXTS[: len(texts)]
        print(json.dumps([whole, len(texts), hub.asked, said, time.monotonic() - began]))
"""


@pytest.mark.slow
def test_the_client_of_the_hub_is_asked_again_and_then_given_up(tmp_path: Path) -> None:
    """D4 the hub drops the connection or falls silent within a file: asked again until the file
    comes, every document once; if it never does, one sentence within a minute.
    """
    done = subprocess.run(
        [sys.executable, "-c", READ],
        env={**os.environ, "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    usual, half, silent, *given_up = (json.loads(line) for line in done.stdout.splitlines())
    rows = FILES * ROWS
    for found, faults in ((usual, 0), (half, 9), (silent, 3)):
        whole, n, asked, said, _ = found
        assert (whole, n, said) == (True, rows, "")
        assert asked == usual[2] + faults + (faults == 9)  # read in two attempts of ours
    assert len(given_up) == 2
    for whole, n, _, said, seconds in given_up:
        assert (whole, n) == (True, ROWS)
        assert f"some/where (text.subset=None, text.split=train) broke off after {n} rows" in said
        assert "run again later to go on from there" in said
        assert 40 < seconds < 60
