"""A server that drops out while a text is read: no document is lost, none comes twice."""

from __future__ import annotations

import http.server
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dictlearn.errors import InputError
from dictlearn.text import HubText, TokenStore, steady, tokenize

FILES, ROWS = 7, 700
SLOW = pytest.mark.slow
TEXTS = [f"Document {n} of a text that is read over a network." for n in range(FILES * ROWS)]
TEXTS[5::50] = [TEXTS[2], TEXTS[3]] * (len(TEXTS[5::50]) // 2)  # some come again and again


class Flaky(http.server.BaseHTTPRequestHandler):
    """Serves files of rows; some answers break off in the middle, or are a 503 or 429."""

    protocol_version = "HTTP/1.1"
    folder: Path
    faults: dict[int, str]
    asked = 0

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        type(self).asked += 1
        fault = self.faults.get(self.asked, self.faults.get(-1, ""))
        if fault.isdigit():
            self.send_error(int(fault))
        elif fault == "silence":
            self.close_connection = True
        else:
            self._answer(body=True, half=fault == "half")

    def _answer(self, body: bool, half: bool = False) -> None:
        content = (self.folder / Path(self.path).name).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content[: len(content) // 2] if half else content)
            self.wfile.flush()
            self.close_connection = half

    def log_message(self, format: str, *args: object) -> None:
        del format, args


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Flaky]]:
    """Our dataset on a server of this machine, read as a stream."""
    for number in range(FILES):
        rows = TEXTS[number * ROWS : (number + 1) * ROWS]
        content = "".join(json.dumps({"text": row}) + "\n" for row in rows)
        (tmp_path / f"{number}.jsonl").write_text(content)
    handler = type("Served", (Flaky,), {"folder": tmp_path, "faults": {}})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # readers hang up
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"

        def load(self: HubText) -> Any:
            import datasets

            files = [f"{address}/{number}.jsonl" for number in range(FILES)]
            return datasets.load_dataset("json", data_files=files, split="train", streaming=True)

        monkeypatch.setattr(HubText, "_load", load)
        monkeypatch.setattr(steady, "WAITS", (0.01, 0.02, 0.03))
        yield handler
        server.shutdown()


def texts() -> list[str]:
    return [document.text for document in HubText("some/where", streaming=True).documents()]


@pytest.mark.parametrize(
    "fault", ["half", "503", *(pytest.param(name, marks=SLOW) for name in ("silence", "429"))]
)
def test_a_stream_goes_on_where_it_broke_off(
    fault: str, served: type[Flaky], caplog: pytest.LogCaptureFixture
) -> None:
    """D4 the hub drops a connection, answers 503 or 429 in mid-stream: asked again with back-off,
    every document comes once.
    """
    caplog.set_level(logging.WARNING, logger="dictlearn")
    assert texts() == TEXTS
    usual = served.asked  # the first of these only find out what kind of files there are
    for first in range(usual - 2 * FILES + 2, usual + 1, 3):
        served.asked, served.faults = 0, {first: fault, first + 1: fault}
        assert texts() == TEXTS
        assert served.asked > usual
    assert "the network failed after row 0 " in caplog.text
    assert "the network failed after row 1000 " in caplog.text


@pytest.mark.parametrize("fault", ["half", "silence", "503"])
def test_a_server_that_stays_away_ends_in_a_sentence(fault: str, served: type[Flaky]) -> None:
    """D4 the hub stays away: after bounded attempts one sentence with the way around it."""
    served.faults = dict.fromkeys(range(3 + FILES, 99), fault)
    began = time.monotonic()
    message = r"some/where .*broke off after \d+ rows .*run again later.*hf download some/where"
    with pytest.raises(InputError, match=message) as told:
        texts()
    assert time.monotonic() - began < 20
    assert "\n" not in str(told.value)
    assert served.asked < 40


def tokenized(place: Path, tokenizer: Any, **options: Any) -> TokenStore:
    """The tokens of our dataset."""
    return tokenize(HubText("some/where", streaming=True, **options), tokenizer, place, False)


@pytest.mark.parametrize(
    "options",
    [pytest.param({}, marks=SLOW), {"max_documents": 4400, "min_characters": 52}],
    ids=str,
)
def test_a_text_that_broke_off_is_gone_on_with(
    options: dict[str, Any], served: type[Flaky], tmp_path: Path, tokenizer: Any
) -> None:
    """D4 the hub stays away in mid-stream: what is tokenised is kept, and the same command goes
    on with the row at which it broke off.
    """
    place = tmp_path / "again"
    whole = tokenized(tmp_path / "whole", tokenizer, **options)
    usual, broke_off = served.asked, "rows .*run again later to go on from there"
    served.asked, served.faults = 0, dict.fromkeys(range(usual - 5, 99), "silence")
    with pytest.raises(InputError, match=f"after 2000 {broke_off}"):
        tokenized(place, tokenizer, **options)
    (kept,) = place.iterdir()
    assert kept.name.endswith(".begun")
    shutil.copytree(place, tmp_path / "counted")
    served.asked, served.faults = 0, {}
    tokenized(tmp_path / "counted", tokenizer, **options)
    served.faults = dict.fromkeys(range(served.asked, 99), "silence")
    served.asked = 0
    with pytest.raises(InputError, match=f"after 4000 {broke_off}"):  # once more
        tokenized(place, tokenizer, **options)
    served.asked, served.faults = 0, {}
    found = tokenized(place, tokenizer, **options)
    assert served.asked < usual  # the first files are not read again
    assert found.tokens.tolist() == whole.tokens.tolist()
    assert found.offsets.tolist() == whole.offsets.tolist()
    assert found.content_hashes.tolist() == whole.content_hashes.tolist()
    assert found.document_ids == whole.document_ids
    assert found.meta | {"seconds": 0} == whole.meta | {"seconds": 0}
    assert not kept.exists()


def test_a_damaged_beginning_is_not_gone_on_with(
    served: type[Flaky], tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A5 the kept beginning of a text is damaged: begun anew, with a warning."""
    whole = tokenized(tmp_path / "whole", tokenizer)
    served.faults = dict.fromkeys(range(served.asked * 2, 99), "silence")
    with pytest.raises(InputError):
        tokenized(tmp_path / "again", tokenizer)
    (kept,) = (tmp_path / "again").iterdir()
    content = bytearray((kept / "tokens.npy").read_bytes())
    content[500] ^= 1
    (kept / "tokens.npy").write_bytes(content)
    served.faults = {}
    assert tokenized(tmp_path / "again", tokenizer).tokens.tolist() == whole.tokens.tolist()
    assert "begun anew" in caplog.text


def test_what_is_no_outage_is_not_tried_again(served: type[Flaky]) -> None:
    """D4 a file that the hub does not have (404): told at once, not asked for again."""
    served.faults = {-1: "404"}
    with pytest.raises(InputError, match="cannot be read"):
        texts()
    assert served.asked <= 4


class Refusing(http.server.BaseHTTPRequestHandler):
    """A hub on which one dataset is closed and the others are not there."""

    def do_GET(self) -> None:
        closed = "closed" in self.path
        self.send_response(403 if closed else 404)
        self.send_header("X-Error-Code", "GatedRepo" if closed else "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        del format, args


def test_a_dataset_that_is_closed_or_gone_is_told_in_a_sentence(tmp_path: Path) -> None:
    """D5 a gated or removed dataset that is not on this machine: one sentence, what and where."""
    code = (
        "from dictlearn.text import HubText\n"
        "from dictlearn.errors import InputError\n"
        "for name in ('closed', 'gone'):\n"
        "    try:\n"
        "        list(HubText('some/' + name).documents())\n"
        "    except InputError as error:\n"
        "        print(error)\n"
    )
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}"}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **address, "HF_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        server.shutdown()
    closed, gone = done.stdout.splitlines()
    assert "text.path=some/closed" in closed
    assert "gated dataset" in closed
    assert "text.path=some/gone" in gone
    assert "doesn't exist on the Hub" in gone
