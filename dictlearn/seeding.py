"""Random draws keyed by (seed, purpose, ...): nothing to store, nothing to lose on resume."""

from __future__ import annotations

import hashlib

import torch


def key_to_seed(seed: int, *key: object) -> int:
    """Return a 56-bit integer that depends on the seed and on every part of the key."""
    digest = hashlib.blake2b(repr((seed, *key)).encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


def generator(seed: int, *key: object) -> torch.Generator:
    """Return a CPU generator for one purpose, e.g. ``generator(seed, "rows", lane, block)``."""
    return torch.Generator().manual_seed(key_to_seed(seed, *key))
