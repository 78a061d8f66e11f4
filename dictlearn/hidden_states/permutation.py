"""A random order of any number of rows that is computed, never stored.

A Feistel network is a bijection of `2^b` numbers whatever its rounds compute; those beyond `n` go
through it again until they fall below (cycle walking: less than two times on average). So row `i`
of the order costs the same for a thousand rows and for a thousand million.

Source: Black & Rogaway 2002, Ciphers with arbitrary finite domains, section 3 (cycle walking).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dictlearn.seeding import key_to_seed

Integers = NDArray[np.int64]
Words = NDArray[np.uint64]

ROUNDS = 8  # even, so that both halves end with the width they began with
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # of splitmix64


class Permutation:
    """A permutation of `0 .. n - 1`, keyed by (seed, purpose, ...).

    Args:
        n: how many numbers there are.
        seed: seed of the run.
        key: the purpose, and what else it depends on (an epoch).
    """

    def __init__(self, n: int, seed: int, *key: object) -> None:
        self.n = n
        bits = max((n - 1).bit_length(), 2)
        self._widths = (np.uint64(bits // 2), np.uint64(bits - bits // 2))
        self._keys = [np.uint64(key_to_seed(seed, *key, i)) for i in range(ROUNDS)]

    def __call__(self, index: Integers) -> Integers:
        """Return where `index: [k]` goes, `[k]`; the numbers must be below `n`."""
        found = self._network(index.astype(np.uint64))
        while (beyond := found >= self.n).any():
            found[beyond] = self._network(found[beyond])
        return found.astype(np.int64)

    def _network(self, words: Words) -> Words:
        """Send numbers below `2^b` through all rounds once."""
        left_width, right_width = self._widths
        one = np.uint64(1)
        left, right = words >> right_width, words & ((one << right_width) - one)
        for key in self._keys:
            # the halves change places, and with them their widths
            left, right = right, left ^ (_mixed(right ^ key) & ((one << left_width) - one))
            left_width, right_width = right_width, left_width
        return (left << right_width) | right


def _mixed(words: Words) -> Words:
    """Return words every bit of which depends on every bit of these (splitmix64's finaliser)."""
    first, second = _MULTIPLIERS
    words = (words ^ (words >> np.uint64(30))) * first
    words = (words ^ (words >> np.uint64(27))) * second
    return words ^ (words >> np.uint64(31))
