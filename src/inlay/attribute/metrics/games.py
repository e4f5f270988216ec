"""The game of a row: the number that is explained as a function of which features are replaced by the baseline.

Legend: m features of a row, T its tokens, n sets of features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from inlay.errors import InputError

if TYPE_CHECKING:
    from inlay.attribute.asked import Asked
    from inlay.attribute.features import Feature

Without = Callable[[Tensor], Tensor]


class Game:
    """The number without some features. Each set of features is asked for once.

    Args:
        m: how many features there are.
        without: gives for bool [n, m], the features that are replaced, the numbers [n].

    Raises:
        InputError: there are no features.
    """

    def __init__(self, m: int, without: Without) -> None:
        if m < 1:
            raise InputError("a row has no feature that may be replaced: keep fewer of its tokens")
        self.m, self._without = m, without
        self._known: dict[bytes, float] = {}

    def __call__(self, dropped: Tensor) -> Tensor:
        """The numbers without some features, float64 [...], on the CPU.

        Args:
            dropped: bool [..., m].

        Raises:
            InputError: a number is not finite.
        """
        sets = dropped.detach().reshape(-1, self.m).cpu()
        keys = [one.tobytes() for one in np.packbits(sets.numpy(), axis=1)]
        new = {key: index for index, key in enumerate(keys) if key not in self._known}
        if new:
            found = self._without(sets[list(new.values())]).double().cpu()
            if not found.isfinite().all():
                bad = int((~found.isfinite()).nonzero()[0])
                gone = sets[list(new.values())[bad]].nonzero().flatten().tolist()
                raise InputError(f"the number is {float(found[bad])} without the features {gone}: it must be finite")
            self._known.update(zip(new, found.tolist(), strict=True))
        return torch.tensor([self._known[key] for key in keys], dtype=torch.float64).reshape(dropped.shape[:-1])

    @property
    def full(self) -> float:
        """The number with all features, f(x)."""
        return float(self(torch.zeros(self.m, dtype=torch.bool)))

    def lost(self, dropped: Tensor) -> Tensor:
        """d(S) = f(x) - f(x without S), float64 [...], for bool [..., m]."""
        return self.full - self(dropped)


def game_of(every: Sequence[Asked], row: int, features: Sequence[Feature]) -> Game:
    """The game of a row of what is asked; over several baselines, the mean number.

    Args:
        every: the same question against each baseline.
        row: which row.
        features: the m features that may be replaced, each a tuple of slots.
    """
    table = torch.zeros(len(features), every[0].longest)
    for index, feature in enumerate(features):
        table[index, list(feature)] = 1

    def without(dropped: Tensor) -> Tensor:
        tokens = dropped.float() @ table > 0
        return torch.stack([asked.without(row, tokens) for asked in every]).mean(0)

    return Game(len(features), without)


def ranking(scores: Tensor) -> Tensor:
    """The features from the highest score to the lowest, int64 [..., m]; equal scores in their own order."""
    return scores.argsort(stable=True, dim=-1, descending=True)


def first(order: Tensor, counts: Sequence[int]) -> Tensor:
    """The sets of the first features of an order, one for each count, bool [..., counts, m].

    Args:
        order: int64 [..., m].
        counts: how many, 0 to m.
    """
    within: Tensor = order.argsort(-1)[..., None, :] < torch.tensor(list(counts))[:, None]
    return within
