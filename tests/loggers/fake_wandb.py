"""A W&B server of our own on this machine, which can fall silent, hang up or go away in mid-run.

It knows just enough for a run to start in online mode, to be resumed, and to end.
"""

import contextlib
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self, cast

ANSWERS: dict[str, dict[str, Any]] = {
    "Viewer": {"viewer": {"entity": "user", "flags": "{}", "teams": {"edges": []}}},
    "ServerFeaturesQuery": {"serverInfo": {"features": []}},
    "CreateArtifact": {"createArtifact": {"artifact": {"id": "artifact", "state": "PENDING"}}},
    "CommitArtifact": {"commitArtifact": {"artifact": {"id": "artifact", "digest": ""}}},
}


class FakeWandb(ThreadingHTTPServer):
    """Keeps what the runs of one project send to `url`; everything ends with its `with` block."""

    daemon_threads = False  # but joined at the end

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.run_ids: list[str] = []
        self.config: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.artifacts = 0
        self.exit_codes: list[int] = []
        self.is_silent = False
        self.over = threading.Event()
        self._hangs_up = False
        self._connections: set[socket.socket] = set()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,))

    def __enter__(self) -> Self:
        self._thread.start()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self.over.set()
        self.go_away()
        # W&B's service also holds connections on which it never asks anything.
        for connection in tuple(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        super().__exit__(*error)

    def silence(self) -> None:
        """From now on accept every request and never answer."""
        self.is_silent = True

    def recover(self) -> None:
        """Answer again."""
        self.is_silent = False

    def hang_up(self) -> None:
        """From now on close every connection without a word."""
        self._hangs_up = True

    def go_away(self) -> None:
        """From now on refuse every connection."""
        self.shutdown()
        self._thread.join()
        self.socket.close()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        self._connections.add(request)
        return not self._hangs_up

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def take(self, path: str, body: bytes) -> dict[str, Any]:
        """Keep what was sent, and return the answer."""
        if path == "/graphql":
            asked = json.loads(body)
            return {"data": self._data(asked["operationName"], asked.get("variables") or {})}
        if path.endswith("/file_stream"):
            self._take_rows(json.loads(body))
        return {}

    def _take_rows(self, sent: dict[str, Any]) -> None:
        history = sent.get("files", {}).get("wandb-history.jsonl", {"offset": 0, "content": []})
        rows = [json.loads(row) for row in history["content"]]
        # At its place: what was not acknowledged is sent again.
        self.history[history["offset"] : history["offset"] + len(rows)] = rows
        if sent.get("complete"):
            self.exit_codes.append(sent["exitcode"])

    def _data(self, operation: str, values: dict[str, Any]) -> dict[str, Any]:
        if operation == "UpsertBucket":
            return {"upsertBucket": {"bucket": self._upsert(values), "inserted": True}}
        if operation == "RunResumeStatus":
            known = values["name"] in self.run_ids
            return {"model": {"bucket": self._run(values["name"]) if known else None}}
        if operation == "CreateRunFiles":
            files = [{"name": name, **self._upload(name)} for name in values["files"]]
            return {"createRunFiles": {"runID": values["run"], "files": files}}
        if operation in ("CreateArtifactManifest", "UpdateArtifactManifest"):
            manifest = {"id": "manifest", "file": {"id": "file", **self._upload("manifest")}}
            return {operation[0].lower() + operation[1:]: {"artifactManifest": manifest}}
        if operation == "CreateArtifactFiles":
            names = [file["name"] for file in values["input"]["artifactFiles"]]
            nodes = [{"artifact": {"id": "artifact"}, **self._upload(name)} for name in names]
            edges = [{"node": node} for node in nodes]
            return {"createArtifactFiles": {"files": {"edges": edges}}}
        if operation == "CommitArtifact":
            self.artifacts += 1
        return ANSWERS.get(operation, {"project": None, "entity": None})

    def _upload(self, name: str) -> dict[str, Any]:
        return {"uploadUrl": f"{self.url}/{name}", "uploadHeaders": []}

    def _upsert(self, values: dict[str, Any]) -> dict[str, Any]:
        if values["name"] not in self.run_ids:
            self.run_ids.append(values["name"])
        config = json.loads(values.get("config") or "{}")
        self.config |= {key: entry["value"] for key, entry in config.items()}
        return self._run(values["name"])

    def _run(self, run_id: str) -> dict[str, Any]:
        return {
            **{"id": run_id, "name": run_id, "displayName": run_id, "tags": []},
            "project": {"id": "project", "name": "dictlearn", "entity": {"name": "user"}},
            "config": json.dumps({key: {"value": value} for key, value in self.config.items()}),
            "wandbConfig": '{"t": 1}',  # It has been started.
            "summaryMetrics": "{}",
            "historyLineCount": len(self.history),
            "historyTail": json.dumps([json.dumps(row) for row in self.history[-1:]]),
            **{"eventsLineCount": 0, "eventsTail": "[]", "logLineCount": 0},
        }


class _Request(BaseHTTPRequestHandler):
    """One question of W&B's service: kept and answered, or left without an answer."""

    def answer(self) -> None:
        fake = cast("FakeWandb", self.server)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fake.is_silent:
            fake.over.wait()
            return
        answer = json.dumps(fake.take(self.path, body)).encode()
        with contextlib.suppress(OSError):  # The service may have gone by now.
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer)

    do_HEAD = do_GET = do_POST = do_PUT = answer  # noqa: N815  (as http.server calls them)

    def log_message(self, format: str, *args: object) -> None:
        del format, args
