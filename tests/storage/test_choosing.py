"""A trained dictionary is used with any inference."""

from __future__ import annotations

import pytest
import torch

from dictlearn.errors import InputError
from tests.storage.made import ATOMS, Make


def test_pursuit_lowers_the_error_of_the_encoder_at_the_same_l0(make: Make) -> None:
    made = make()
    states = made.data.sample(300)
    own = made.trained
    greedy = own.with_inference("omp", k=8)
    errors = []
    for trained in (own, greedy):
        codes = trained.encode(states)
        assert (codes > 0).sum(-1).max() <= 8
        again = trained.decode(codes, states.layer)
        errors.append(float((again - states.vectors).square().sum()))
    assert errors[1] < errors[0]


def test_options_of_the_sparsity_and_of_the_inference_are_told_apart(make: Make) -> None:
    trained = make().trained.with_inference("working_set", lambda_=0.2, tolerance=1e-3)
    assert trained.prox.lambda_ == 0.2
    assert trained.inference.tolerance == 1e-3
    states = make().data.sample(100)
    solution = trained.infer(states)
    assert solution.gap.max() <= 1e-3
    assert solution.codes.l0().float().mean() > 0


def test_more_codes_explain_more(make: Make) -> None:
    made = make()
    states = made.data.sample(100)
    errors = []
    for k in (2, 4, 16):
        trained = made.trained.with_inference("omp", k=k)
        again = trained.decode(trained.encode(states), states.layer)
        errors.append(float((again - states.vectors).square().sum()))
    assert errors == sorted(errors, reverse=True)


def test_the_encoder_is_there_by_name_and_the_first_dictionary_is_left_alone(make: Make) -> None:
    made = make()
    states = made.data.sample(50)
    before = made.trained.encode(states)
    made.trained.with_inference("omp", k=3)
    torch.testing.assert_close(made.trained.encode(states), before)
    torch.testing.assert_close(made.trained.with_inference("encoder").encode(states), before)


def test_a_sample_is_given_k_codes_on_average_by_exchange_and_by_l1(make: Make) -> None:
    made = make()
    states = made.data.sample(400)
    each = made.trained.with_inference("exchange", k=6).encode(states)
    assert (each > 0).sum(-1).max() <= 6
    errors = {"each": made.trained.decode(each, states.layer) - states.vectors}
    for name in ("exchange", "working_set"):
        shared = made.trained.with_inference(name, k=6, sample=states)
        codes = shared.encode(states)
        count = (codes > 0).sum(-1)
        assert abs(float(count.float().mean()) - 6) < 0.3
        assert count.max() > 8
        errors[name] = shared.decode(codes, states.layer) - states.vectors
    assert errors["exchange"].square().sum() < errors["each"].square().sum()
    # In raw vectors of one layer, too.
    first = states.vectors[states.layer == 3]
    few = made.trained.with_inference("exchange", k=3, sample=first, layer=3)
    assert abs(float((few.encode(first, layer=3) > 0).sum(-1).float().mean()) - 3) < 0.3


def test_the_price_of_training_is_kept_unless_another_k_is_asked_for(make: Make) -> None:
    made = make()
    states = made.data.sample(400)
    shared = made.trained.with_inference("exchange", k=6, sample=states)
    again, each = shared.with_inference("exchange", rounds=8), shared.with_inference("omp")
    assert torch.equal(again.encode(states), shared.encode(states))
    assert (each.encode(states) > 0).sum(-1).max() <= 6
    other = shared.with_inference("exchange", k=4)
    assert (other.encode(states) > 0).sum(-1).max() <= 4


def test_mistakes_are_told_in_a_sentence(make: Make) -> None:
    trained = make().trained
    with pytest.raises(InputError, match=r"Did you mean.*omp"):
        trained.with_inference("opm")
    with pytest.raises(InputError, match=r"no option 'tolerence'.*tolerance"):
        trained.with_inference("working_set", lambda_=0.1, tolerence=1e-3)
    with pytest.raises(InputError, match="give lambda_="):
        trained.with_inference("working_set")
    with pytest.raises(InputError, match=f"k={ATOMS + 1}"):
        trained.with_inference("omp", k=ATOMS + 1)
    with pytest.raises(InputError, match=r"sample= is for inferences at a price"):
        trained.with_inference("omp", k=3, sample=make().data.sample(50))
    with pytest.raises(InputError, match=r"sample= is what k codes"):
        trained.with_inference(
            "working_set", lambda_=0.1, sample=make().data.sample(50)
        ).with_inference("exchange", sample=make().data.sample(50))
    exact = trained.with_inference("omp")
    with pytest.raises(InputError, match="without an encoder"):
        exact.with_inference("encoder")
