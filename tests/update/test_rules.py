"""Rules as configs describe them, and the schedule of their rate."""

import pytest

from dictlearn.dictionary import Dictionary
from dictlearn.errors import InputError
from dictlearn.inference import Unrolled
from dictlearn.prox import TopK
from dictlearn.update import Adam, HessianDiagonalRule, lr_factor


def test_the_rate_rises_stays_and_falls() -> None:
    rule = Adam(warmup_vectors=100, decay_fraction=0.5)
    rates = [lr_factor(rule, seen, 10_000) for seen in (0, 50, 100, 3_000, 5_000, 7_500, 10_000)]
    assert rates == pytest.approx([0.1, 0.55, 1, 1, 1, 0.5, 0])
    assert lr_factor(rule, 12_000, 10_000) == 0


def test_without_warm_up_and_decay_the_rate_is_constant() -> None:
    rule = HessianDiagonalRule(warmup_vectors=0, decay_fraction=0)
    assert {lr_factor(rule, seen, 1_000) for seen in (0, 1, 500, 1_000, 2_000)} == {1.0}


def test_a_short_run_warms_up_for_a_tenth_of_it() -> None:
    rule = Adam(warmup_vectors=25_000, decay_fraction=0.3)
    assert lr_factor(rule, 100, 1_000) == 1


def test_each_part_has_its_rate() -> None:
    dictionary = Dictionary(12, 4, bias=True)
    encoder = Unrolled(2)
    encoder.build(dictionary, TopK(2))
    parts = list(dictionary.parameters()), list(encoder.parameters())

    def rates(rule: Adam | HessianDiagonalRule) -> dict[str, float]:
        return {group["role"]: group["lr"] for group in rule.build(*parts).param_groups}

    assert rates(Adam(lr=0.1)) == {"atoms": 0.1, "bias": 0.1, "encoder": 0.1}
    assert rates(Adam(lr=0.1, encoder_lr=0.2)) == {"atoms": 0.1, "bias": 0.1, "encoder": 0.2}
    hessian = HessianDiagonalRule(lr=0.1, encoder_lr=0.2)
    assert rates(hessian) == {"atoms": 0.1, "bias": 0.2, "encoder": 0.2}
    alone = Adam(lr=0.1).build(list(Dictionary(12, 4).parameters()), [])
    assert [group["role"] for group in alone.param_groups] == ["atoms"]


@pytest.mark.parametrize(
    ("rule", "options", "key"),
    [
        (Adam, {"lr": 0}, "update.lr=0 must be above 0"),
        (Adam, {"lr": "fast"}, "update.lr"),
        (Adam, {"encoder_lr": -1}, "update.encoder_lr=-1"),
        (Adam, {"warmup_vectors": -5}, "update.warmup_vectors"),
        (Adam, {"decay_fraction": 1.5}, "update.decay_fraction"),
        (HessianDiagonalRule, {"mode": "sed"}, "update.mode=sed .*Did you mean 'seed'"),
        (HessianDiagonalRule, {"lr": -0.1}, "update.lr"),
        (HessianDiagonalRule, {"floor": 0}, "update.floor"),
        (HessianDiagonalRule, {"window": 1}, "update.window"),
        (HessianDiagonalRule, {"encoder_lr": float("nan")}, "update.encoder_lr"),
    ],
)
def test_mistakes_are_told_by_their_key(
    rule: type[Adam] | type[HessianDiagonalRule], options: dict[str, float], key: str
) -> None:
    with pytest.raises(InputError, match=key):
        rule(**options)  # type: ignore[arg-type]
