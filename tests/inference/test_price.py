import math

import torch

from dictlearn.inference.price import GAIN, Price


def test_the_price_rises_when_codes_are_too_many_and_falls_when_too_few() -> None:
    price = Price(0.1, target_l0=32)
    price.observe(torch.tensor(48.0))
    assert float(price.lambda_) == torch.tensor(0.1 * math.exp(GAIN * 0.5))
    price.observe(torch.tensor(16.0))
    assert math.isclose(float(price.lambda_), 0.1, rel_tol=1e-6)


def test_one_step_never_moves_the_price_by_more_than_the_gain() -> None:
    price = Price(0.1, target_l0=2)
    price.observe(torch.tensor(3000.0))
    assert math.isclose(float(price.lambda_), 0.1 * math.exp(GAIN), rel_tol=1e-6)


def test_steered_lasso_codes_come_to_the_target() -> None:
    """L0 of the codes of `relu(z - lambda)`, z exponential, is m exp(-lambda): known exactly."""
    price = Price(0.5, target_l0=10)
    for _ in range(300):
        price.observe(1000 * torch.exp(-price.lambda_))
    assert math.isclose(float(price.lambda_), math.log(100), rel_tol=1e-3)
