import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb


@pytest.fixture(autouse=True)
def _no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A home without logins, and W&B as if nothing had been read from another one."""
    for key in [key for key in os.environ if key.startswith("WANDB_")]:
        monkeypatch.delenv(key)
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    _forget()
    yield
    _forget()
    os.environ.pop("WANDB_SERVICE", None)


def _forget() -> None:
    # A test kills the service; there is nothing left to say goodbye to.
    with contextlib.suppress(OSError):
        wandb.teardown()
