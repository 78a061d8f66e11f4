from __future__ import annotations

import numpy as np
import pytest
import torch

from dictlearn.errors import InputError
from dictlearn.hidden_states.statistics import Normalization, Statistics, measure
from tests.hidden_states.conftest import Bench

KINDS = ("none", "center", "unit_scale", "center_unit_scale")


def measured(bench: Bench, kind: str, n_tokens: int = 10**9) -> Statistics:
    return measure(bench.extractor, bench.plan.mixed(), n_tokens, kind)


def test_statistics_are_those_of_the_rows_in_float64(bench: Bench) -> None:
    rows = bench.extractor.rows(np.arange(len(bench.extractor.blocks.start)))
    for kind in ("unit_scale", "center_unit_scale"):
        statistics = measured(bench, kind)
        for i, layer in enumerate((0, 3)):
            vectors = rows.vectors[rows.layer == layer].double()
            mean = vectors.mean(0)
            torch.testing.assert_close(statistics.mean[i], mean.float(), atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(statistics.norm[i], vectors.norm(dim=1).mean().float())
            centred = vectors - mean if kind.startswith("center") else vectors
            scale = centred.square().sum(1).mean().sqrt()
            torch.testing.assert_close(statistics.scale[i], scale.float())


def test_statistics_read_as_many_tokens_as_asked_and_are_the_same_again(bench: Bench) -> None:
    few, again, all_ = (measured(bench, "center", n) for n in (60, 60, 10**9))
    assert all(torch.equal(a, b) for a, b in zip(few, again, strict=True))
    assert not torch.equal(few.mean, all_.mean)
    order, sequences = bench.plan.mixed(), bench.extractor.frame.sequences
    tokens = np.cumsum(bench.extractor.n_tokens(order))
    passes = 1 + int(np.searchsorted(tokens, 60)) // sequences
    first = bench.extractor.rows(order[: passes * sequences])
    torch.testing.assert_close(few.mean[1], first.vectors[first.layer == 3].mean(0))


@pytest.mark.parametrize("kind", KINDS)
def test_normalisation_gives_mean_zero_and_mean_square_one_in_every_layer(
    bench: Bench, kind: str
) -> None:
    statistics = measured(bench, kind)
    normalization = Normalization(kind, (0, 3), statistics.mean, statistics.scale)
    rows = bench.extractor.rows(np.arange(len(bench.extractor.blocks.start)))
    x = normalization(rows.vectors, rows.layer)
    for layer in (0, 3):
        part = x[rows.layer == layer]
        if kind.startswith("center"):
            assert part.mean(0).abs().max() < 1e-5
        if kind.endswith("unit_scale"):
            assert float(part.square().sum(1).mean()) == pytest.approx(1, abs=1e-5)
    assert (kind == "none") == torch.equal(x, rows.vectors)
    torch.testing.assert_close(
        normalization.invert(x, rows.layer), rows.vectors, atol=1e-5, rtol=1e-5
    )


def test_a_normalisation_comes_back_from_its_tensors_and_moves_as_a_module() -> None:
    mean, scale = torch.randn(2, 5), torch.tensor([2.0, 3.0])
    normalization = Normalization("center_unit_scale", [7, 2], mean, scale)
    state = normalization.state_dict()
    assert sorted(state) == ["layers", "mean", "scale"]
    again = Normalization(normalization.kind, state["layers"], state["mean"], state["scale"])
    vectors, layer = torch.randn(4, 5), torch.tensor([2, 7, 7, 2])
    expected = (vectors - mean[[1, 0, 0, 1]]) / scale[[1, 0, 0, 1]][:, None]
    assert torch.equal(again(vectors, layer), expected)
    assert again.double()(vectors.double(), layer).dtype == torch.float64


@pytest.mark.parametrize("layer", [0, 4, 9])
def test_a_layer_that_was_not_measured_is_an_error(layer: int) -> None:
    normalization = Normalization("center", [2, 7], torch.zeros(2, 5), torch.ones(2))
    with pytest.raises(IndexError):
        normalization(torch.randn(1, 5), torch.tensor([layer]))


def test_a_layer_without_variance_and_an_unknown_kind_are_named() -> None:
    with pytest.raises(InputError, match="cannot scale layer 7"):
        Normalization("unit_scale", [2, 7], torch.zeros(2, 5), torch.tensor([1.0, 0.0]))
    with pytest.raises(InputError, match="Did you mean 'center'"):
        Normalization("centre", [2, 7], torch.zeros(2, 5), torch.ones(2))
