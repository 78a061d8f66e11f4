"""A hub that goes away for a while: which errors say so, and how long it may be silent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

SILENCE = 5
"""Seconds for which the hub's client waits for an answer, where the user has not said. It asks six
times by itself, with 23 s of waits: its own 10 s would make that 83."""

# What their modules begin with: newer versions are called httpx2 and the like.
_CLIENTS = ("aiohttp", "httpcore", "httpx", "requests", "urllib3")
_TOO_MANY, _TIMEOUT, _SERVER = 429, 408, 500


def is_outage(error: BaseException) -> bool:
    """Tell whether an error, or what caused it, is of the network and may pass."""
    seen: BaseException | None = error
    while seen is not None:
        status = getattr(getattr(seen, "response", None), "status_code", None)
        status = getattr(seen, "status", status)  # aiohttp's name for it
        if isinstance(status, int):
            return status in (_TOO_MANY, _TIMEOUT) or status >= _SERVER
        of_client = type(seen).__module__.startswith(_CLIENTS)
        if of_client or isinstance(seen, ConnectionError | TimeoutError):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


@contextmanager
def short_silences() -> Iterator[None]:
    """Let the hub's client wait `SILENCE` seconds for an answer, within this."""
    from huggingface_hub import constants

    before = constants.HF_HUB_DOWNLOAD_TIMEOUT
    if before == constants.DEFAULT_DOWNLOAD_TIMEOUT:  # HF_HUB_DOWNLOAD_TIMEOUT is not set
        constants.HF_HUB_DOWNLOAD_TIMEOUT = SILENCE
    try:
        yield
    finally:
        constants.HF_HUB_DOWNLOAD_TIMEOUT = before
