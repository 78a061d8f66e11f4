import http.server
import threading
import time
from pathlib import Path

import pytest

from dictlearn.loggers.reachable import answers, in_netrc


@pytest.mark.parametrize("status", [200, 404, 500])
def test_a_server_answers_whatever_it_says(status: int) -> None:
    class Server(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert answers(f"http://127.0.0.1:{server.server_address[1]}", 5)
        server.shutdown()


def test_a_server_that_hangs_up_without_a_word_does_not_answer() -> None:
    class Server(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.close_connection = True

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert not answers(f"http://127.0.0.1:{server.server_address[1]}", 5)
        server.shutdown()


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "https://no-such-host.invalid"])
def test_nobody_answers_within_the_time(url: str) -> None:
    start = time.monotonic()
    assert not answers(url, 1)
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("place", [".netrc", "_netrc", "elsewhere"])
def test_a_login_is_found_in_netrc(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    if place == "elsewhere":
        monkeypatch.setenv("NETRC", str(home / place))
    (home / place).write_text("machine api.example.org login user password key\n")
    assert in_netrc("https://api.example.org")
    assert in_netrc("https://other.org", "https://api.example.org/path")
    assert not in_netrc("https://example.org")


@pytest.mark.parametrize("content", ["", "machine", "machine api.example.org login user"])
def test_a_netrc_without_the_key_is_no_login(content: str, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".netrc").write_text(content)
    assert not in_netrc("https://api.example.org")


def test_a_netrc_that_is_no_text_is_no_login(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".netrc").write_bytes(b"machine other.org login user password caf\xe9\n")
    assert not in_netrc("https://api.example.org")
