from __future__ import annotations

import argparse

import pytest

from benchmarks import frontier
from benchmarks.trainings import METHODS, OVERRIDES, Found


def entry(part: str, method: str, rate: float | None, fvu: float, **more: object) -> Found:
    """What is kept of a training."""
    common: Found = {"part": part, "method": method, "rate": rate, "n_atoms": 1536, "cpu": 20.0}
    common |= {"side": "dictlearn", "label": "dictlearn", "n_vectors": 300}
    return common | {"fvu@32": fvu, "shared@32": 0.8 * fvu, "best@32": 0.8 * fvu} | more


FOUND = [
    entry("presets", "topk", 1e-3, 0.20),
    entry("presets", "topk", 6e-3, 0.16),
    entry("presets", "batch_topk", 6e-3, 0.15),
    entry("presets", "topk", 6e-3, 0.01, n_atoms=3072),
    entry("ours", "two_phase", None, 0.11, cpu=60.0, **{"best@32": 0.09}),
    entry("encoders", "unrolled_3", None, 0.10, topk_encodes=4.0),
    entry("encoders", "unrolled_3_restricted", None, 0.12, topk_encodes=2.4),
]


def asked(*, mixed: bool = False) -> argparse.Namespace:
    return argparse.Namespace(n_vectors=300, only=list(frontier.PARTS), mixed=mixed)


def test_ours_is_compared_with_the_best_preset_at_its_best_rate() -> None:
    _, figures = frontier.verdicts(FOUND, 1536, asked())
    assert figures["m1536/best_over_preset"] == pytest.approx(0.09 / 0.15)


def test_an_encoder_that_costs_too_much_does_not_count() -> None:
    _, figures = frontier.verdicts(FOUND, 1536, asked())
    assert figures["m1536/encoder_over_preset"] == pytest.approx(0.12 / 0.15)
    assert frontier.affordable(FOUND, 3072) is None


def test_mixed_vectors_are_compared_with_topk() -> None:
    _, figures = frontier.verdicts(FOUND, 1536, asked(mixed=True))
    assert figures["m1536/best_over_topk_mixed"] == pytest.approx(0.09 / 0.16)
    assert "m1536/best_over_preset" not in figures


def test_equal_time_gives_every_preset_the_seconds_of_ours_at_its_best_rate_and_half() -> None:
    planned = list(frontier.equal_cpu(asked(), FOUND, 1536))
    assert {(plan.method, plan.rate) for plan in planned} == {
        *(("topk", 6e-3), ("topk", 3e-3)),
        *(("batch_topk", 6e-3), ("batch_topk", 3e-3)),
    }
    assert {plan.n_vectors for plan in planned} == {900}  # three times the seconds
    longer = [*FOUND, entry("equal_cpu", "topk", 3e-3, 0.13, n_vectors=900)]
    _, figures = frontier.verdicts(longer, 1536, asked())
    assert figures["m1536/best_over_equal_cpu"] == pytest.approx(0.09 / 0.13)


def test_equal_time_waits_for_ours() -> None:
    without = [one for one in FOUND if one["part"] != "ours"]
    assert list(frontier.equal_cpu(asked(), without, 1536)) == []


def test_a_checkpoint_is_compared_with_itself() -> None:
    peer = entry("peers", "topk", 6e-3, 0.15, side="sae-lens", label="sae-lens 6")
    _, figures = frontier.verdicts([*FOUND, peer], 1536, asked())
    assert figures["m1536/checkpoint_sae-lens_topk"] == pytest.approx(0.8)
    assert figures["m1536/best_over_sae-lens_topk"] == pytest.approx(0.09 / 0.15)


def test_what_is_not_there_is_left_out() -> None:
    table, figures = frontier.verdicts([], 1536, asked())
    assert figures == {}
    assert table.rows == []


def test_every_method_of_ours_has_a_config_and_four_rates_or_its_own() -> None:
    for part in METHODS.values():
        for (side, method), rates in part.items():
            assert side != "dictlearn" or method in OVERRIDES
            assert len(set(rates)) == 4 or rates == (None,)
