"""NAOPC: AOPC between the least and the greatest that any order of a row's features gives.

Every order of m features passes through one set of each size, so that the best order is the best path through the
2^m sets: best[S] = d(S) + max over i in S of best[S without i], d(S) = f(x) - f(x without S). That is 2^m runs and
m 2^m additions where the paper's code tries all m! orders, and it starts from no value at all: an upper limit below 0
stays below 0. Source: NAOPC (2408.08137).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import comb

import torch
from torch import Tensor

from inlay.attribute.metrics.games import Game
from inlay.errors import InputError

EXACT = 12
WIDTH = 5


@dataclass(frozen=True)
class Limits:
    """What AOPC lies between.

    Attributes:
        lower, upper: the least and the greatest AOPC; of a beam, the least and the greatest that it found.
        worst, best: int64 [m], an order that gives each.
        exact: whether no order lies outside.
    """

    lower: float
    upper: float
    worst: Tensor
    best: Tensor
    exact: bool

    def of(self, aopc: Tensor) -> Tensor:
        """(AOPC - lower) / (upper - lower), float64 [...]; NaN where all orders give the same.

        The same limits hold for comprehensiveness and sufficiency. A beam's may be passed by some order.
        """
        spread = self.upper - self.lower
        return (aopc - self.lower) / (spread if spread > 0 else torch.nan)


def limits(game: Game, width: int = WIDTH, exact: int = EXACT) -> Limits:
    """The limits of a game: over all orders up to `exact` features, by beam search above.

    Args:
        game: the game.
        width: of the beam (the paper's code has 50, its results on long texts 5).
        exact: the most features for which all 2^m sets are asked for.
    """
    if game.m <= exact:
        return exact_limits(game)
    return beam_limits(game, width)


def runs(m: int, width: int = WIDTH, exact: int = EXACT) -> int:
    """How many sets `limits` asks for at most."""
    if m <= exact:
        return int(2**m)
    return 2 * sum(min(width, comb(m, k)) * (m - k) for k in range(m))


def exact_limits(game: Game) -> Limits:
    """The limits over all m! orders, from all 2^m sets, one size of sets at a time."""
    m = game.m
    number = torch.arange(2**m)
    bit = 2 ** torch.arange(m)
    holds = (number[:, None] & bit) > 0
    lost = game.lost(holds)
    size = holds.sum(1)

    def extreme(sign: float) -> tuple[float, Tensor]:
        best, last = torch.zeros(2**m, dtype=torch.float64), torch.zeros(2**m, dtype=torch.int64)
        for k in range(1, m + 1):
            here = number[size == k]
            before = best[here[:, None] ^ bit].masked_fill(~holds[here], -torch.inf)
            value, last[here] = before.max(1)
            best[here] = value + sign * lost[here]
        order, left = [], 2**m - 1
        while left:
            order.append(int(last[left]))
            left ^= 1 << order[-1]
        return sign * float(best[-1]) / m, torch.tensor(order[::-1])

    (upper, best), (lower, worst) = extreme(1.0), extreme(-1.0)
    return Limits(lower, upper, worst, best, True)


def beam_limits(game: Game, width: int = WIDTH) -> Limits:
    """The limits that a beam search finds: of the orders' beginnings of one length the `width` best are kept.

    Beginnings of the same set are one, the better of them: they go on alike. About width m^2 runs.

    Raises:
        InputError: the beam has no width.
    """
    if width < 1:
        raise InputError(f"width={width}: a beam keeps at least 1")
    (upper, best), (lower, worst) = _beam(game.lost, game.m, width, 1.0), _beam(game.lost, game.m, width, -1.0)
    return Limits(lower, upper, worst, best, False)


def _beam(lost: Callable[[Tensor], Tensor], m: int, width: int, sign: float) -> tuple[float, Tensor]:
    """The greatest (or with sign -1 the least) AOPC of the beam, and its order."""
    sets = torch.zeros(1, m, dtype=torch.bool)
    total = torch.zeros(1, dtype=torch.float64)
    orders = torch.zeros(1, 0, dtype=torch.int64)
    for _ in range(m):
        parent, added = (~sets).nonzero(as_tuple=True)
        grown = sets[parent]
        grown[torch.arange(len(grown)), added] = True
        grown, which = grown.unique(dim=0, return_inverse=True)
        path = total[parent]
        best = torch.full((len(grown),), -torch.inf, dtype=torch.float64).scatter_reduce(0, which, path, "amax")
        found = (path == best[which]).nonzero().flatten()
        source = torch.empty(len(grown), dtype=torch.int64)
        source[which[found]] = found  # one of the best beginnings of each set
        value = best + sign * lost(grown)
        kept = value.topk(min(width, len(value))).indices
        sets, total, source = grown[kept], value[kept], source[kept]
        orders = torch.cat([orders[parent[source]], added[source, None]], 1)
    return sign * float(total[0]) / m, orders[0]
