"""Which callbacks a run gets."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from dictlearn.callbacks.progress import FactorProgressBar
from dictlearn.callbacks.revival import DeadAtomRevival
from dictlearn.callbacks.variants import callbacks


def test_a_callback_that_is_null_is_none() -> None:
    target = "dictlearn.callbacks.revival.DeadAtomRevival"
    revival = {"_target_": target, "every_vectors": 64, "until_fraction": 0.5}
    nodes = {"gallery": None, "revival": revival}
    config = OmegaConf.create({"callbacks": nodes, "trainer": {"enable_progress_bar": False}})
    (made,) = callbacks(config, {}, Path())
    assert isinstance(made, DeadAtomRevival)


@pytest.mark.parametrize("shown", [True, False])
def test_our_bar_is_there_where_one_is_asked_for(shown: bool) -> None:
    """Lightning shows one of its own otherwise, without our figures."""
    nodes = {"progress": {"_target_": "dictlearn.callbacks.progress.FactorProgressBar"}}
    config = OmegaConf.create({"callbacks": nodes, "trainer": {"enable_progress_bar": shown}})
    made = [type(callback) for callback in callbacks(config, {}, Path())]
    assert made == [FactorProgressBar] * shown
