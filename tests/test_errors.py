"""Checks of what a user gave, and the sentences that they say."""

import math

import pytest

from dictlearn.errors import InputError, choice, nearest, number, whole_number


@pytest.mark.parametrize(("given", "made"), [(1, 1), (7, 7), (1e6, 1_000_000), (2.0, 2)])
def test_whole_numbers_are_taken_as_integers(given: float, made: int) -> None:
    found = whole_number("key", given)
    assert found == made
    assert type(found) is int


@pytest.mark.parametrize("value", [1.5, math.nan, math.inf, -math.inf, "3", None, True, [1]])
def test_what_is_no_whole_number_is_refused_under_its_key(value: object) -> None:
    with pytest.raises(InputError, match=r"^prox\.k must be a whole number"):
        whole_number("prox.k", value)


def test_a_whole_number_below_the_minimum_is_refused_with_both_numbers() -> None:
    assert whole_number("seed", 0, 0) == 0
    with pytest.raises(InputError, match=r"prox\.k=0 must be at least 1"):
        whole_number("prox.k", 0)
    with pytest.raises(InputError, match=r"seed=-1 must be at least 0"):
        whole_number("seed", -1, 0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "0.5", None, True])
def test_what_is_no_finite_number_is_refused_under_its_key(value: object) -> None:
    with pytest.raises(InputError, match=r"^update\.lr must be a finite number"):
        number("update.lr", value)


@pytest.mark.parametrize("value", [-0.001, 1.001])
def test_a_number_outside_its_bounds_is_refused_with_them(value: float) -> None:
    with pytest.raises(InputError, match=rf"share={value} must be in \[0, 1\]"):
        number("share", value, 0, 1)


def test_the_bounds_of_a_number_belong_to_it_and_it_becomes_a_float() -> None:
    assert [number("share", value, 0, 1) for value in (0, 1, 0.25)] == [0.0, 1.0, 0.25]
    assert type(number("share", 1, 0, 1)) is float
    with pytest.raises(InputError, match="lr=-1 must be at least 0"):
        number("lr", -1, 0)


def test_a_choice_is_returned_or_refused_with_the_options_and_the_nearest() -> None:
    assert choice("update.mode", "seed", ("seed", "corrected")) == "seed"
    with pytest.raises(InputError) as refused:
        choice("update.mode", "corected", ("seed", "corrected"))
    assert str(refused.value) == (
        "update.mode=corected is not one of seed, corrected. Did you mean 'corrected'?"
    )
    with pytest.raises(InputError, match=r"one of seed, corrected\.$"):
        choice("update.mode", None, iter(("seed", "corrected")))


def test_the_nearest_name_is_offered_only_when_it_is_near() -> None:
    names = ["prox.k", "prox.lambda_", "dictionary.n_atoms"]
    assert nearest("dictionary.n_atom", names) == " Did you mean 'dictionary.n_atoms'?"
    assert nearest("prox.lambda", iter(names)) == " Did you mean 'prox.lambda_'?"
    assert nearest("zzz", names) == ""
    assert nearest("anything", []) == ""


def test_a_mistake_is_a_value_error_for_those_who_use_the_library() -> None:
    with pytest.raises(ValueError, match="lr"):
        number("lr", "fast")
