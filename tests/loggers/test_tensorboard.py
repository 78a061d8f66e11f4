import time
from pathlib import Path

import pytest

from dictlearn.errors import InputError
from dictlearn.loggers import finish_loggers, log_config, rewind
from dictlearn.loggers.tensorboard import TensorBoardRunLogger
from tests.loggers.tiny import Tiny, trainer


def test_a_run_is_read_back_with_its_config_and_history(tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    job = trainer([TensorBoardRunLogger(tmp_path)], tmp_path)
    log_config(job.loggers, {"prox": {"k": 16}, "layers": [0, 2]})
    job.fit(Tiny())
    finish_loggers(job.loggers)
    assert [path.name for path in tmp_path.iterdir()] == ["tensorboard"]
    events = accumulators.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [3, 7, 11, 15]
    assert [event.step for event in events.Scalars("val/fvu")] == [7, 15]
    (tag,) = events.Tags()["tensors"]
    text = events.Tensors(tag)[0].tensor_proto.string_val[0].decode()
    assert '"k": 16' in text
    assert "hp_metric" not in events.Tags()["scalars"]


def test_a_run_that_goes_on_has_every_step_once(tmp_path: Path) -> None:
    """D3 a run is killed after a checkpoint: TensorBoard shows what it did after that once."""
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for piece, first in enumerate((0, 4)):
        logger = TensorBoardRunLogger(tmp_path)
        log_config([logger], {"prox": {"k": 16}})
        rewind([logger], [], first)
        for step in range(first, first + 8):
            logger.log_metrics({"train/loss": 10.0 * piece + step}, step)
        logger.finalize("success")
        time.sleep(1.1)  # event files are named by the second
    events = accumulators.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    seen = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert seen == [*((s, s) for s in range(4)), *((s, 10 + s) for s in range(4, 12))]
    assert len(events.Tags()["tensors"]) == 1


def test_without_tensorboard_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'transformer-factors\[tensorboard\]'"):
        TensorBoardRunLogger(tmp_path)
