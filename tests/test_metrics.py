"""The held-out figures against their definitions, written out."""

import pytest
import torch

from dictlearn.codes import Codes
from dictlearn.metrics import FiringFrequency, HeldOutMetrics, LayerFVU, LayerMean
from dictlearn.metrics.held_out import Measured


def test_fvu_is_the_definition_per_layer_and_in_all() -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 6) + 3
    x_hat = x + 0.3 * torch.randn(50, 6)
    row = torch.randint(0, 3, (50,))
    metric = LayerFVU(3, 6)
    for part in (slice(0, 20), slice(20, 50)):
        metric.update(x[part], x_hat[part], row[part])
    residual, variance = 0.0, 0.0
    for layer in range(3):
        here = row == layer
        r = float((x - x_hat)[here].double().square().sum())
        v = float((x[here] - x[here].mean(0)).double().square().sum())
        torch.testing.assert_close(float(metric.compute()[layer]), r / v, rtol=1e-5, atol=0)
        residual, variance = residual + r, variance + v
    assert abs(float(metric.compute()[-1]) - residual / variance) < 1e-5


def test_a_reconstruction_by_the_mean_scores_one() -> None:
    x = torch.randn(40, 5, dtype=torch.float64) * 2 + 7
    metric = LayerFVU(1, 5)
    metric.update(x, x.mean(0).expand_as(x), torch.zeros(40, dtype=torch.int64))
    torch.testing.assert_close(metric.compute(), torch.ones(2, dtype=torch.float64))


def test_layer_means_weigh_every_row_once() -> None:
    metric = LayerMean(2)
    metric.update(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0, 0, 1]))
    metric.update(torch.tensor([3.0]), torch.tensor([0]))
    assert metric.compute().tolist() == [2.0, 6.0, 3.0]


def test_firing_counts_positive_codes_dense_and_sparse_alike() -> None:
    dense = torch.tensor([[0.0, 0.5, 0.0, 2.0], [1.0, 0.1, 0.0, 0.0]])
    values, indices = dense.topk(3, dim=-1)
    for codes in (Codes.from_dense(dense), Codes(values, indices, 4)):
        metric = FiringFrequency(4)
        metric.update(codes)
        assert metric.compute().tolist() == [0.5, 1.0, 0.0, 0.5]


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_figures_have_the_names_of_metrics_json() -> None:
    metrics = HeldOutMetrics([0, 4], width=3, n_atoms=5)
    codes = Codes.from_dense(torch.tensor([[1.0, 0, 0, 0, 0], [0, 2.0, 1.0, 0, 0]]))
    x = torch.randn(2, 3)
    metrics.update(Measured(x, x * 0.5, torch.tensor([0, 1]), codes, torch.ones(2)))
    assert "val/duality_gap" not in metrics.compute()[0]  # it was measured for no row
    metrics.update_gap(torch.tensor([0.1, 0.3]), torch.tensor([0, 0]))
    figures, firing = metrics.compute()
    assert abs(float(figures["val/duality_gap"]) - 0.2) < 1e-6
    assert set(figures) == {
        "val/fvu", "val/fvu_layer_0", "val/fvu_layer_4", "val/l0", "val/l0_layer_0",
        "val/l0_layer_4", "val/cosine", "val/objective", "val/duality_gap", "val/dead_fraction",
    }  # fmt: skip
    assert figures["val/l0"] == 1.5
    assert float(figures["val/dead_fraction"]) == 0.4
    assert abs(float(figures["val/cosine"]) - 1) < 1e-6
    assert firing.tolist() == [0.5, 0.5, 0.5, 0, 0]
    metrics.reset()
    assert float(metrics.firing.n) == 0
