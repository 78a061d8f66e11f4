"""A hub with one dataset that real clients stream from, and that drops out when it is told to."""

from __future__ import annotations

import http.server
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

FILES, ROWS = 3, 1000
TEXTS = [f"Document {n} of a text that is read over a network." for n in range(FILES * ROWS)]
REVISION = "0" * 39 + "1"


class FakeHub(http.server.BaseHTTPRequestHandler):
    """Answers as the hub does; reading the second file fails so many times.

    An answer that fails breaks off in the middle (`half`), or is silent from there on (`hang`).
    """

    protocol_version = "HTTP/1.1"
    fault, times, asked, silent = "", 0, 0, 0

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.endswith(".jsonl"):
            self._file(int(path[-7]))
        elif path.endswith(f"/tree/{REVISION}"):
            files = ({"type": "file", "path": f"{n}.jsonl", "oid": "a" * 40} for n in range(FILES))
            self._say([{**file, "size": len(content(n))} for n, file in enumerate(files)])
        elif path.startswith("/api/datasets/some/where") and "/tree/" not in path:
            names = [{"rfilename": f"{number}.jsonl"} for number in range(FILES)]
            self._say({"id": "some/where", "sha": REVISION, "siblings": names, "private": False})
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _say(self, answer: object) -> None:
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _file(self, number: int) -> None:
        first, _, last = self.headers.get("Range", "bytes=0-").split("=")[1].partition("-")
        body = content(number)[int(first) : int(last) + 1 if last else None]
        self.send_response(206)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        kind = type(self)
        kind.asked += 1
        if number != 1 or not kind.times:
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


def content(number: int) -> bytes:
    """A file of the dataset."""
    rows = TEXTS[number * ROWS : (number + 1) * ROWS]
    return "".join(json.dumps({"text": row}) + "\n" for row in rows).encode()


@contextmanager
def served() -> Iterator[type[FakeHub]]:
    """The hub of this process, if nothing of Hugging Face is imported yet."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeHub) as server:
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # readers hang up
        threading.Thread(target=server.serve_forever, daemon=True).start()
        os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_address[1]}"
        yield FakeHub
        server.shutdown()
