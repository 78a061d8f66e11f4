"""A run goes on by itself with the options it began with, and with others if that is said."""

from typing import Any

import pytest

from dictlearn.callbacks.same_options import refuse_other_options
from dictlearn.errors import InputError

BEGAN: dict[str, Any] = {
    "prox": {"k": 4},
    "update": {"lr": 0.1},
    "variants": None,
    "max_vectors": 9,
    "resume": "auto",
}


def test_other_options_are_refused_and_named() -> None:
    now = {**BEGAN, "prox": {"k": 8}, "update": {"lr": 0.1, "decay": 2}}
    with pytest.raises(InputError, match=r"began with prox\.k=4 and now has 8, update\.decay=None"):
        refuse_other_options(BEGAN, now)
    with pytest.raises(InputError, match=r"variants"):
        refuse_other_options(BEGAN, {**BEGAN, "variants": {"prox.k": [4, 8]}})


def test_what_does_not_decide_what_is_learned_may_change() -> None:
    refuse_other_options(BEGAN, {**BEGAN, "max_vectors": 18, "logger": {"csv": {}}})


def test_who_says_resume_true_may_change_anything() -> None:
    refuse_other_options(BEGAN, {**BEGAN, "prox": {"k": 8}, "resume": True})
