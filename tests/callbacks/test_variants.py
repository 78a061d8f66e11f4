"""Which callbacks a run gets."""

from pathlib import Path

from omegaconf import OmegaConf

from dictlearn.callbacks.revival import DeadAtomRevival
from dictlearn.callbacks.variants import callbacks


def test_a_callback_that_is_null_is_none() -> None:
    target = "dictlearn.callbacks.revival.DeadAtomRevival"
    revival = {"_target_": target, "every_vectors": 64, "until_fraction": 0.5}
    nodes = {"gallery": None, "revival": revival}
    config = OmegaConf.create({"callbacks": nodes, "trainer": {"enable_progress_bar": False}})
    (made,) = callbacks(config, {}, Path())
    assert isinstance(made, DeadAtomRevival)
