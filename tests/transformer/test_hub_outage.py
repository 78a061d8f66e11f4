"""A model of the hub, as its client meets it when it drops out while the weights come."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

READ = """
import json, time, torch
from tests.fake_hub import nobody_waits, served
from tests.transformer.fake_hub import ModelHub

with served(ModelHub) as hub:
    from dictlearn.errors import InputError
    from dictlearn.transformer import FrozenTransformer

    nobody_waits(hub)
    for hub.fault, hub.times in (("half", -1), ("hang", -1), ("half", 2)):
        began, said = time.monotonic(), ""
        try:
            FrozenTransformer("some/model").load(torch.device("cpu"))
        except InputError as error:
            said = str(error)
        print(json.dumps([said, time.monotonic() - began]))
"""


@pytest.mark.slow
def test_a_model_that_breaks_off_is_asked_for_again_and_then_given_up(tmp_path: Path) -> None:
    """D4 the hub drops the connection or falls silent within the weights of a model: asked again
    until they are there; if they never are, one sentence with the way around within a minute.
    """
    done = subprocess.run(
        [sys.executable, "-c", READ],
        env={**os.environ, "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
    )
    *given_up, (said, _) = (json.loads(line) for line in done.stdout.splitlines())
    assert said == ""
    assert len(given_up) == 2
    for said, seconds in given_up:
        assert said.startswith("transformer.path=some/model: weights broke off while it was down")
        assert "run again later, or download its files where there is a network" in said
        assert 5 < seconds < 60
