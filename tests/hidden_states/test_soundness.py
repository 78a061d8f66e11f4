"""The lengths that outliers are known by."""

from __future__ import annotations

import pytest
import torch

from dictlearn.hidden_states.soundness import lengths


@pytest.mark.parametrize(
    ("dtype", "off"), [(torch.float32, 1e-6), (torch.float16, 1e-6), (torch.bfloat16, 2**-8)]
)
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_lengths_are_right_in_every_precision(dtype: torch.dtype, off: float, size: float) -> None:
    """In float16 the largest do not fit, in bfloat16 as many numbers cannot be summed up."""
    rows = (size * torch.randn(2, 50, 768, generator=torch.Generator().manual_seed(0))).to(dtype)
    found = lengths(rows)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, rows.double().norm(dim=-1).float(), rtol=off, atol=0)
