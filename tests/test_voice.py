"""A failure is told once, by the process that failed first."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import distributed

from dictlearn.errors import InputError, Lost
from dictlearn.launch import RANKS
from dictlearn.voice import one_voice, tell_failure

GLOO = "[/third_party/gloo/gloo/transport/tcp/pair.cc:553] "


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of any launcher."""
    for key in (*RANKS, "SLURM_NTASKS", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(key, raising=False)


@pytest.fixture
def together(tmp_path: Path) -> Iterator[None]:
    """A process that has met all others of its run."""
    distributed.init_process_group("gloo", f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def fail(error: Exception, folder: Path) -> Exception:
    """Return what an error becomes."""
    with pytest.raises(Exception, match=r".") as raised, one_voice(folder):
        raise error
    return raised.value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Connection closed by peer [127.0.0.1]:7. This is", r"\(Connection closed by peer \["),
        ("Timed out waiting 600000ms for recv operation to complete", r"\(Timed out waiting 6"),
    ],
)
def test_a_process_that_is_gone_is_told_in_one_sentence(
    text: str, reason: str, tmp_path: Path
) -> None:
    """C1, C3 a collective fails for want of a process: one sentence with the reason, and the
    command that goes on where there is a checkpoint.
    """
    with pytest.raises(Lost, match=reason) as lost, one_voice(tmp_path):
        raise RuntimeError(GLOO + text)
    assert "resume=true" not in str(lost.value)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    assert f"run={tmp_path} resume=true" in str(fail(RuntimeError(GLOO + text), tmp_path))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(GLOO + "op.preamble.length <= op.nbytes. 4 vs 8"),
        RuntimeError("the server timed out"),
        InputError("Connection closed by peer"),
        OSError("gloo: broken pipe"),
    ],
)
def test_other_errors_stay_what_they_are(error: Exception, tmp_path: Path) -> None:
    assert fail(error, tmp_path) is error


def test_only_the_first_of_those_that_have_met_tells(
    together: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """C2 several processes fail: the first one tells it."""
    for name in ("first", "second"):
        tell_failure(name, fail(InputError(name), tmp_path))
    assert capsys.readouterr().err == "dictlearn: first\n"


def test_a_process_that_fails_alone_before_they_have_met_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """C2 a rank fails before it has met the others: it tells; what all find in the command line
    the main process tells.
    """
    monkeypatch.setenv("LOCAL_RANK", "1")
    tell_failure("of all", InputError("of all"))
    tell_failure("of one", fail(InputError("of one"), tmp_path))
    assert capsys.readouterr().err == "dictlearn: of one\n"


def test_a_process_that_is_not_the_main_one_says_which_it_is(
    together: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(distributed, "get_rank", lambda: 5)  # on another node
    tell_failure("of one", fail(InputError("of one"), tmp_path))
    assert capsys.readouterr().err == "dictlearn: rank 5: of one\n"
