"""Deletion and insertion: the number along a ranking, from all features to none and from none to all.

Scores are [n, m], n scorings of one row's m features; areas are float64 [n], in the number's units.
"""

from __future__ import annotations

import torch
from torch import Tensor

from inlay.attribute.metrics.games import Game, first, ranking


def deletion_curve(game: Game, scores: Tensor) -> Tensor:
    """f without the k highest features, k = 0 ... m, float64 [n, m + 1]."""
    return game(first(ranking(scores), range(game.m + 1)))


def insertion_curve(game: Game, scores: Tensor) -> Tensor:
    """f with the k highest features alone, k = 0 ... m, float64 [n, m + 1]."""
    return game(~first(ranking(scores), range(game.m + 1)))


def deletion(game: Game, scores: Tensor) -> Tensor:
    """The area under the deletion curve over k/m, by trapezoids; down (RISE, 1806.07421)."""
    return torch.trapezoid(deletion_curve(game, scores), dx=1 / game.m)


def insertion(game: Game, scores: Tensor) -> Tensor:
    """The area under the insertion curve over k/m, by trapezoids; up (RISE, 1806.07421)."""
    return torch.trapezoid(insertion_curve(game, scores), dx=1 / game.m)
