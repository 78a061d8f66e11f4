from pathlib import Path

import pytest

from dictlearn.errors import InputError
from dictlearn.loggers import finish_loggers, log_config
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


def test_without_tensorboard_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'transformer-factors\[tensorboard\]'"):
        TensorBoardRunLogger(tmp_path)
