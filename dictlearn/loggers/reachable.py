"""Whether a server can be used at all: asked in bounded time, and without asking the user."""

from __future__ import annotations

import http.client
import netrc
import os
import ssl
import threading
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit


def answers(url: str, seconds: float) -> bool:
    """Tell whether a server answers at `url`, whatever it says, within `seconds`."""
    answered = threading.Event()

    def ask() -> None:
        """Set `answered` if the server says anything, be it an error, within `seconds`."""
        request = urllib.request.Request(url, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=seconds).close()
        except http.client.RemoteDisconnected:  # It hung up without a word.
            return
        except (urllib.error.HTTPError, http.client.HTTPException):
            pass
        except urllib.error.URLError as error:
            # A certificate that this client does not know is an answer too.
            if not isinstance(error.reason, ssl.SSLError):
                return
        except OSError:
            return
        answered.set()

    # In a thread: no timeout of a socket bounds the time that looking up a name takes.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()


def in_netrc(*urls: str) -> bool:
    """Tell whether the user's netrc file holds a password for the host of one of `urls`."""
    hosts = [urlsplit(url).netloc for url in urls]
    for place in (os.environ.get("NETRC", ""), "~/.netrc", "~/_netrc"):
        path = Path(place).expanduser()
        try:
            known = netrc.netrc(str(path)).hosts if path.is_file() else {}
        except (OSError, UnicodeDecodeError, netrc.NetrcParseError):
            continue
        if any(known[host][2] for host in hosts if host in known):
            return True
    return False
