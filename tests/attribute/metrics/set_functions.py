"""Games without a model: a number for each set of replaced features, and the naive loops over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from inlay.attribute.metrics.games import Game


def by_set(m: int, number: Callable[[frozenset[int]], float]) -> Game:
    """The game whose number without the set S is number(S)."""

    def without(dropped: Tensor) -> Tensor:
        return torch.tensor([number(frozenset(one.nonzero().flatten().tolist())) for one in dropped])

    return Game(m, without)


def random_numbers(m: int, seed: int, shift: float = 0.0) -> Callable[[frozenset[int]], float]:
    """Numbers drawn for each set; `shift` is added to that of the whole row."""
    table = torch.randn(2**m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()
    return lambda gone: table[sum(1 << i for i in gone)] + (0.0 if gone else shift)


def additive(weights: Sequence[float], rest: float = 0.0) -> Callable[[frozenset[int]], float]:
    """The sum of the weights that are left, and a constant."""
    return lambda gone: rest + sum(w for i, w in enumerate(weights) if i not in gone)


def naive_aopc(number: Callable[[frozenset[int]], float], order: Iterable[int]) -> float:
    """(1/m) sum_k (f(x) - f(x minus pi_1 .. pi_k)), read off the formula."""
    order = list(order)
    total = 0.0
    for k in range(1, len(order) + 1):
        total += number(frozenset()) - number(frozenset(order[:k]))
    return total / len(order)
