"""What the tests of several pursuits share."""

import pytest

from dictlearn.inference import pursuit_form


@pytest.fixture(params=["torch", "residual", "compiled"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both engines, and torch without a Gram matrix."""
    if request.param == "compiled":
        pytest.importorskip("numba")
    if request.param == "residual":
        monkeypatch.setattr(pursuit_form, "GRAM_BYTES", 0)
        return "torch"
    return str(request.param)
