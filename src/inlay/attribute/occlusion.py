"""Occlusion, and the game that it shares with the other methods that take features away.

Legend: R rows, T tokens, F features of a row, k sets of features.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from inlay.attribute.asked import Asked

Present = Callable[[Tensor], Tensor]
"""Gives for sets of features, bool [k, F] (which are there), the number that is explained, float64 [k]."""


def occlusion(asked: Asked) -> Tensor:
    """M(x) - M(x with the feature at the baseline), [R, T]; a forward for each feature.

    Features that stand in for each other each score about 0: see `shapley`. Source: Zeiler & Fergus (1311.2901); Li et
    al. (1612.08220).
    """

    def score(game: Present, features: int) -> Tensor:
        whole = torch.ones(1, features, dtype=torch.bool)
        values = game(torch.cat([whole, ~torch.eye(features, dtype=torch.bool)]))
        return values[0] - values[1:]

    return played(asked, score)


def played(asked: Asked, score: Callable[[Present, int], Tensor]) -> Tensor:
    """Scores [R, T] of what `score` gives for each row's game and number of features, [F].

    The tokens of a feature share its score equally.
    """
    found = torch.zeros(len(asked.rows), asked.longest, device=asked.model.device)
    for row, features in enumerate(asked.features):
        found[row] = asked.spread(row, score(_game(asked, row), len(features))).float()
    return found


def _game(asked: Asked, row: int) -> Present:
    """What a row's number is when only some of its features are there and the others are the baseline's."""
    table = asked.table(row)

    def game(there: Tensor) -> Tensor:
        gone = (~there).to(table.device, torch.float32)
        return asked.without(row, gone @ table.float() > 0)

    return game
