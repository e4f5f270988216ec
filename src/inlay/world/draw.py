"""The random stream of one line: the same on every machine and Python version, and its own for every line."""

from __future__ import annotations

import random
from collections.abc import Sequence
from hashlib import blake2b
from typing import TypeVar

T = TypeVar("T")


class Draw:
    """Draws from a stream that a key fixes.

    Only `random.Random(seed).random()` is called, whose values Python guarantees; `choice`, `sample` and `shuffle` may
    change between versions and are written out here.

    Args:
        key: what the stream belongs to, such as world version, section, split, seed and line number.
    """

    def __init__(self, *key: object) -> None:
        digest = blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
        self.unit = random.Random(int.from_bytes(digest)).random  # uniform in [0, 1)

    def chance(self, p: float) -> bool:
        """True with probability p."""
        return self.unit() < p

    def pick(self, xs: Sequence[T]) -> T:
        """One of them, uniformly."""
        return xs[int(self.unit() * len(xs))]

    def number(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        return low + int(self.unit() * (high - low + 1))

    def weighted(self, weights: Sequence[float]) -> int:
        """An index, with probability in proportion to its weight."""
        left = self.unit() * sum(weights)
        for index, weight in enumerate(weights):
            left -= weight
            if left < 0:
                return index
        return max(i for i, weight in enumerate(weights) if weight > 0)

    def shuffled(self, xs: Sequence[T]) -> list[T]:
        """All of them, in random order (Fisher and Yates)."""
        mixed = list(xs)
        for last in range(len(mixed) - 1, 0, -1):
            other = self.number(0, last)
            mixed[last], mixed[other] = mixed[other], mixed[last]
        return mixed

    def sample(self, xs: Sequence[T], n: int) -> list[T]:
        """n different ones."""
        return self.shuffled(xs)[:n]
