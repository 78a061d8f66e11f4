"""A hub on this machine that real clients ask, and that drops out when it is told to."""

from __future__ import annotations

import http.server
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

REVISION = "0" * 39 + "1"
Kind = TypeVar("Kind", bound="FakeHub")


class FakeHub(http.server.BaseHTTPRequestHandler):
    """Answers as the hub does; reading some file fails so many times.

    An answer that fails breaks off in the middle (`half`), or is silent from there on (`hang`).
    """

    protocol_version = "HTTP/1.1"
    fault, times, asked, silent = "", 0, 0, 0

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.answer(self.path.partition("?")[0])

    def answer(self, path: str) -> None:
        """Answer by `say`, `send_file` or `not_there`."""
        raise NotImplementedError

    def say(self, answer: object) -> None:
        """Answer a question of what there is."""
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def not_there(self) -> None:
        """Answer that there is no such file."""
        self.send_response(404)
        self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send_file(self, name: str, content: bytes, failing: bool) -> None:
        """Answer with what is asked for of a file; if it fails, as often as it is to."""
        first, _, last = self.headers.get("Range", "bytes=0-")[6:].partition("-")
        body = content[int(first) : int(last) + 1 if last else None]
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("X-Repo-Commit", REVISION)
        self.send_header("ETag", f'"{name}"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        kind = type(self)
        kind.asked += 1
        if not failing or not kind.times:
            self.wfile.write(body)
            return
        kind.times -= 1
        self.wfile.write(body[: len(body) // 2])
        self.wfile.flush()
        self.close_connection = True
        if kind.fault == "hang":
            kind.silent += 1
            threading.Event().wait(30)

    def log_message(self, format: str, *args: object) -> None:
        del format, args


@contextmanager
def served(kind: type[Kind]) -> Iterator[type[Kind]]:
    """The hub of this process, if nothing of Hugging Face is imported yet."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # readers hang up
        threading.Thread(target=server.serve_forever, daemon=True).start()
        os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_address[1]}"
        yield kind
        server.shutdown()


def nobody_waits(hub: type[FakeHub]) -> None:
    """Let all of this process believe that they waited: between attempts, and for answers."""
    from dictlearn import outage

    patience, outage.SILENCE = outage.SILENCE, 0.2  # type: ignore[assignment]
    slept, real = 0.0, time.monotonic

    def sleep(seconds: float) -> None:
        nonlocal slept
        slept += seconds

    time.sleep = sleep  # type: ignore[assignment]
    time.monotonic = lambda: real() + slept + patience * hub.silent
