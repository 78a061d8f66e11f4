from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from dictlearn.errors import InputError
from dictlearn.hidden_states.options import StreamOptions

CONF = Path(__file__).parents[2] / "conf" / "hidden_states" / "stream.yaml"


def test_the_configuration_file_builds_the_defaults_and_names_every_option() -> None:
    config = OmegaConf.load(CONF)
    assert instantiate(config) == StreamOptions()
    assert set(config) - {"_target_"} == {field.name for field in fields(StreamOptions)}


def test_a_list_of_layers_from_the_command_line_becomes_a_tuple() -> None:
    config = OmegaConf.merge(OmegaConf.load(CONF), {"layers": [0, 2]})
    assert instantiate(config).layers == (0, 2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 0}, r"hidden_states\.batch_size=0 must be at least 1"),
        ({"batch_size": -4}, r"hidden_states\.batch_size=-4"),
        ({"lanes": 2.5}, r"hidden_states\.lanes must be a whole number"),
        ({"normalization": "centre"}, r"hidden_states\.normalization=centre .* 'center'"),
        ({"special_tokens": "all"}, r"hidden_states\.special_tokens=all"),
        ({"token_weight_exponent": -1}, r"hidden_states\.token_weight_exponent=-1"),
        ({"validation_vectors": -1}, r"hidden_states\.validation_vectors=-1"),
        ({"keep_special": "perhaps"}, r"hidden_states\.keep_special must be true or false"),
        ({"prefetch": "maybe"}, r"hidden_states\.prefetch must be true or false"),
    ],
)
def test_a_wrong_value_is_named_with_its_key(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        StreamOptions(**wrong)


def test_checking_the_options_needs_no_torch() -> None:
    code = (
        "import sys, dictlearn.hidden_states as room; room.StreamOptions();"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
