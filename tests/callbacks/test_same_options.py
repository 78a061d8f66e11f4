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


LIVE: dict[str, Any] = {
    **BEGAN,
    "transformer": {"path": "bert", "dtype": "auto", "name": None},
    "hidden_states": {"normalization": "center", "token_weight_exponent": 0.0, "prefetch": True},
}


@pytest.mark.parametrize(
    ("key", "name", "value"),
    [
        ("transformer", "path", "gpt2"),
        ("transformer", "dtype", "bfloat16"),
        ("hidden_states", "normalization", "none"),
        ("hidden_states", "token_weight_exponent", 0.5),
    ],
)
def test_other_vectors_are_refused(key: str, name: str, value: object) -> None:
    now = {**LIVE, key: {**LIVE[key], name: value}}
    said = f"began with {key}.{name}={LIVE[key][name]} and now has {value}:"
    with pytest.raises(InputError, match=said):
        refuse_other_options(LIVE, now)


def test_how_the_vectors_come_may_change() -> None:
    faster = {**LIVE["hidden_states"], "prefetch": False}
    named = {**LIVE["transformer"], "name": "mine"}
    refuse_other_options(LIVE, {**LIVE, "hidden_states": faster, "transformer": named})


def test_stored_vectors_are_not_of_what_transformer_says() -> None:
    stored = {**LIVE, "hidden_states": {"path": "cache", "normalization": "center"}}
    refuse_other_options(stored, {**stored, "transformer": {"path": "gpt2"}})
