from __future__ import annotations

import numpy as np
import pytest
import torch

from dictlearn.hidden_states.weights import token_weights

COUNTS = np.array([100, 0, 4, 1, 25])


def test_a_token_weighs_its_count_to_the_minus_p() -> None:
    weights = token_weights(COUNTS, 0.5, normalize=False)
    torch.testing.assert_close(weights, torch.tensor([0.1, 1.0, 0.5, 1.0, 0.2]))


def test_without_an_exponent_all_tokens_weigh_one() -> None:
    for normalize in (False, True):
        assert torch.equal(token_weights(COUNTS, 0, normalize), torch.ones(5))


@pytest.mark.parametrize("exponent", [0.25, 0.5, 1.0])
def test_normalised_weights_have_mean_one_over_the_text(exponent: float) -> None:
    weights = token_weights(COUNTS, exponent, normalize=True)
    assert float(weights.double() @ COUNTS) / COUNTS.sum() == pytest.approx(1, abs=1e-6)
    assert float(weights[2] / weights[0]) == pytest.approx(25**exponent, rel=1e-5)
