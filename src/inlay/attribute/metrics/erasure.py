"""Metrics of erasure: how much the number falls without the features that a ranking puts first, or last.

f is the number, m the features, and n the scorings of one row; all scores are [n, m] and all results float64 [n].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from inlay.attribute.metrics.games import Game, first, ranking

MOST = 50
RATIOS = (0.5, 0.8, 0.9, 0.95, 0.99)


def comprehensiveness(game: Game, scores: Tensor, most: int = MOST) -> Tensor:
    """The share of f that is lost without the k highest features, the mean over k = 1 ... min(most, m); up.

    NaN where f(x) is not above 0, of which nothing is a share: a log-probability never is, and a logit difference only
    where the target wins. The paper's code lets the k that a row of fewer than 50 features lacks count as 0; here they
    do not count. A raw logit's share changes when all logits are shifted, so that models do not compare.

    Source: GIM (2505.17630), its code.
    """
    return _share(game, game.lost(first(ranking(scores), range(1, min(most, game.m) + 1))))


def sufficiency(game: Game, scores: Tensor, ratios: Sequence[float] = RATIOS) -> Tensor:
    """The share of f that is lost without the int(r m) lowest features, the mean over the ratios r; down.

    NaN where f(x) is not above 0; see `comprehensiveness`. Source: GIM (2505.17630), its code.
    """
    return _share(game, game.lost(first(ranking(scores).flip(-1), [int(r * game.m) for r in ratios])))


def aopc(game: Game, order: Tensor) -> Tensor:
    """The area over the perturbation curve, (1/m) sum_k (f(x) - f(x without the order's first k)), k = 1 ... m.

    Args:
        game: the game.
        order: int64 [..., m], which feature goes first.

    Returns:
        float64 [...].
    """
    return game.lost(first(order, range(1, game.m + 1))).mean(-1)


def aopc_comprehensiveness(game: Game, scores: Tensor) -> Tensor:
    """`aopc` from the highest score to the lowest; up (NAOPC, 2408.08137, eq. 1)."""
    return aopc(game, ranking(scores))


def aopc_sufficiency(game: Game, scores: Tensor) -> Tensor:
    """`aopc` from the lowest score to the highest; down (NAOPC, 2408.08137)."""
    return aopc(game, ranking(scores).flip(-1))


def _share(game: Game, lost: Tensor) -> Tensor:
    return lost.mean(-1) / (game.full if game.full > 0 else torch.nan)
