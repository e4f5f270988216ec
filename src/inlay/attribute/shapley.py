"""Shapley values: exact over all subsets of a few features, and by KernelSHAP's regression for more.

Legend: R rows, T tokens, n features, k subsets.
"""

from __future__ import annotations

from itertools import combinations
from math import comb

import torch
from torch import Tensor

from inlay.attribute.asked import Asked
from inlay.attribute.occlusion import Present, played
from inlay.errors import InputError

MOST = 12
"""Features of a row that exact Shapley values are computed for: 4096 forwards."""


def shapley(asked: Asked) -> Tensor:
    """Exact Shapley values, [R, T]: each feature's mean effect over all orders in which they can be put back.

    A row of n features takes 2^n forwards. Its scores add up to M(x) - M(baseline). Source: Shapley (1953).

    Raises:
        InputError: a row has more than `MOST` features.
    """
    for row, features in enumerate(asked.features):
        if len(features) > MOST:
            raise InputError(
                f"row {row} has {len(features)} features, and exact Shapley values take 2^n forwards: at most {MOST}. "
                "Use method='kernel_shap', score fewer tokens (within=), or score groups of them (by=)"
            )
    return played(asked, exact)


def kernel_shap(asked: Asked, samples: int | None = None) -> Tensor:
    """Shapley values by KernelSHAP's weighted regression, [R, T] (Lundberg & Lee, 1705.07874, theorem 2).

    The scores add up to M(x) - M(baseline) whatever the samples.

    Args:
        asked: what is asked.
        samples: the most subsets of each row's features besides none and all, a forward each; by default 3 a feature.
            As many as 2^n - 2 take every subset once: the values are then exact.

    Raises:
        InputError: samples < 2 n - 2, which do not determine n scores.
    """
    return played(asked, lambda game, n: regressed(game, n, samples, asked.seed))


def subsets(n: int) -> Tensor:
    """All subsets of n features, bool [2^n, n]; feature i is bit i of the row's number."""
    return (torch.arange(2**n)[:, None] >> torch.arange(n)) % 2 == 1


def exact(game: Present, n: int) -> Tensor:
    """The Shapley values of a game of n features, float64 [n].

    phi_i = sum over S without i of |S|! (n - |S| - 1)! / n! (v(S + i) - v(S)), as one product over the 2^n values.
    """
    there = subsets(n)
    size = there.sum(1)
    weight = torch.tensor([1 / (n * comb(n - 1, s)) for s in range(n)], dtype=torch.float64)
    joins, stays = weight[(size - 1).clamp(min=0)], weight[size.clamp(max=n - 1)]
    share = torch.where(there, joins[:, None], -stays[:, None])
    values = game(there).double().cpu()
    return share.T @ values


def regressed(game: Present, n: int, samples: int | None = None, seed: int = 0) -> Tensor:
    """KernelSHAP's values of a game of n features, float64 [n].

    min over phi of sum_k w_k (v_k - v(none) - z_k.phi)^2 where the phi add up to d = v(all) - v(none). With
    phi = d / n + c, the c add up to 0, so that only z_k less its mean acts on it: an ordinary least-squares problem,
    whose shortest solution adds up to 0 by itself.
    """
    there, weight = coalitions(n, 3 * n if samples is None else samples, seed)
    ends = torch.tensor([[False] * n, [True] * n])
    values = game(torch.cat([ends, there])).double().cpu()
    equal = (values[1] - values[0]) / n
    if n == 1:
        return equal[None]
    centred = there.double() - there.double().mean(1, keepdim=True)
    rest = values[2:] - values[0] - there.sum(1) * equal
    root = weight.sqrt()[:, None]
    differences: Tensor = torch.linalg.lstsq(root * centred, root * rest[:, None], driver="gelsd").solution[:, 0]
    return equal + differences


def coalitions(n: int, samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Subsets of n features, neither none nor all, bool [k <= samples, n], and their weights [k], which add up to 1.

    Sizes are taken whole from the ends inward while the samples last; the others' subsets are drawn by their kernel
    weight (n - 1) / (C(n, s) s (n - s)). Each comes with its complement, as in the package `shap`.

    Raises:
        InputError: samples < 2 n - 2.
    """
    if samples < 2 * n - 2:
        raise InputError(f"samples={samples} subsets do not determine {n} scores: give at least {2 * n - 2}")
    found = [torch.zeros(0, n, dtype=torch.bool)]
    weights = [torch.zeros(0, dtype=torch.float64)]
    sizes = list(range(1, n // 2 + 1))  # of a subset or of its complement
    mass = [(1 if 2 * s == n else 2) / (s * (n - s)) for s in sizes]
    total, left = sum(mass), samples
    while sizes:
        count = comb(n, sizes[0]) * (1 if 2 * sizes[0] == n else 2)
        if count > left or left * mass[0] < (count - 1e-9) * sum(mass):
            break
        whole = _of_size(n, sizes.pop(0))
        found.append(whole)
        weights.append(torch.full((count,), mass.pop(0) / total / count, dtype=torch.float64))
        left -= count
    if sizes and left > 1:
        drawn, share = _drawn(n, sizes, mass, left // 2, seed)
        found += [drawn, ~drawn]
        weights += [share * sum(mass) / total / 2] * 2
    return torch.cat(found), torch.cat(weights)


def _of_size(n: int, size: int) -> Tensor:
    """All subsets of `size` features and their complements, bool [k, n]."""
    index = torch.tensor(list(combinations(range(n), size)))
    found = torch.zeros(len(index), n, dtype=torch.bool).scatter(1, index, True)
    return found if 2 * size == n else torch.cat([found, ~found])


def _drawn(n: int, sizes: list[int], mass: list[float], most: int, seed: int) -> tuple[Tensor, Tensor]:
    """At most `most` distinct subsets of the given sizes, bool [p, n], and the share of the draws that fell on each."""
    made = torch.Generator().manual_seed(seed)
    draws = 4 * most
    size = torch.tensor(sizes)[torch.multinomial(torch.tensor(mass), draws, replacement=True, generator=made)]
    ranks = torch.rand(draws, n, generator=made).argsort(1).argsort(1)
    drawn = ranks < size[:, None]
    drawn ^= (2 * size == n)[:, None] & ~drawn[:, :1]  # a half and its complement are one draw
    distinct, which = drawn.unique(dim=0, return_inverse=True)
    first = torch.full((len(distinct),), draws).scatter_reduce(0, which, torch.arange(draws), "amin")
    first, order = first.sort()
    until = int(first[most]) if len(first) > most else draws
    share = which[:until].bincount(minlength=len(distinct))[order[:most]] / until
    return distinct[order[:most]], share.double()
