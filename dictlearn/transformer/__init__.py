"""The frozen transformer: token ids in, hidden states of the tapped layers out.

Names load on first use, so that checking a configuration needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dictlearn.transformer.frozen import FrozenTransformer

__all__ = ["FrozenTransformer"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dictlearn.transformer.frozen import FrozenTransformer

    return FrozenTransformer
