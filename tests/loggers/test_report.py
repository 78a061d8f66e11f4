import numpy as np
import torch

from dictlearn.loggers.report import usage_histogram


def test_atoms_are_counted_by_the_decade_of_their_frequency() -> None:
    frequency = torch.tensor([0.0, 1e-9, 2e-4, 2.01e-4, 0.55, 1.0])
    counts, edges = usage_histogram(frequency)
    assert counts.sum() == len(frequency)
    np.testing.assert_allclose(edges, np.linspace(-7, 0, 71), atol=1e-12)
    found = {round(float(edges[i]), 1): int(counts[i]) for i in np.flatnonzero(counts)}
    assert found == {-7.0: 2, -3.7: 2, -0.3: 1, -0.1: 1}


def test_the_bins_do_not_depend_on_the_values() -> None:
    _, first = usage_histogram(torch.full((3,), 0.5))
    _, second = usage_histogram(torch.zeros(5))
    np.testing.assert_array_equal(first, second)
