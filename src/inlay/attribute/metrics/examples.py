"""One row as the metrics see it: its game, which of its features may be replaced, and what is known of it.

Legend: m features, T tokens, n scorings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inlay.attribute.metrics.games import Game, game_of
from inlay.attribute.metrics.naopc import EXACT, Limits, limits, runs
from inlay.attribute.metrics.soft import Distance, distance_of
from inlay.errors import InputError

if TYPE_CHECKING:
    from inlay.attribute.asked import Asked
    from inlay.attribute.features import Feature


@dataclass(frozen=True, eq=False)
class Example:
    """A row.

    Attributes:
        every: what is asked, against each baseline.
        row: which row.
        features: its m features that may be replaced.
        evidence: bool [m], those that the answer follows from; `None` where that is not known.
        width: of the beam for the limits of more than `EXACT` features.
        most_runs: the most runs that the limits may take.
        draws: for metrics that draw.
        seed: of the draws.
    """

    every: Sequence[Asked]
    row: int
    features: list[Feature]
    evidence: Tensor | None
    width: int
    most_runs: int
    draws: int
    seed: int

    @cached_property
    def game(self) -> Game:
        """The number as a function of the features that are replaced."""
        return game_of(self.every, self.row, self.features)

    @cached_property
    def limits(self) -> Limits:
        """What AOPC lies between.

        Raises:
            InputError: they would take more runs than are allowed.
        """
        m = len(self.features)
        if (count := runs(m, self.width)) > self.most_runs:
            raise InputError(
                f"row {self.row} has {m} features, and the limits of its AOPC take up to {count:,} runs (most_runs="
                f"{self.most_runs:,}): score words or spans (by=), narrow the beam (width={self.width}), give evidence="
                " and leave naopc out, or raise most_runs"
            )
        return limits(self.game, self.width)

    @property
    def exact(self) -> bool:
        """Whether the limits are exact."""
        return len(self.features) <= EXACT

    @cached_property
    def distance(self) -> Distance:
        """How far the next-token distribution is from the clean one, for elements that are kept."""
        may_change = torch.zeros(self.every[0].longest, dtype=torch.bool)
        may_change[[slot for feature in self.features for slot in feature]] = True
        return distance_of(self.every[0], self.row, may_change)

    def by_feature(self, scores: Tensor) -> Tensor:
        """Scores of tokens [T] as those of features, float64 [m]: a feature's is the sum of its tokens'.

        Raises:
            InputError: a token of a feature has no score.
        """
        found = torch.stack([scores[list(feature)].double().sum() for feature in self.features]).cpu()
        if not found.isfinite().all():
            bad = self.features[int((~found.isfinite()).nonzero()[0])]
            raise InputError(f"the tokens {list(bad)} of row {self.row} have no finite score: score them, or keep them")
        return found

    def by_token(self, values: Tensor) -> Tensor:
        """Values of features [m] at their tokens, 0 elsewhere, float64 [length of the row]."""
        found = torch.zeros(len(self.every[0].rows[self.row].ids), dtype=torch.float64)
        for feature, value in zip(self.features, values.double(), strict=True):
            found[list(feature)] = value
        return found

    def random(self, count: int) -> Tensor:
        """Scores of random rankings, float64 [count, m]."""
        drawn = torch.Generator().manual_seed(self.seed * 1_000_003 + self.row)
        return torch.rand(count, len(self.features), generator=drawn, dtype=torch.float64)

    def oracle(self, greatest: bool) -> Tensor:
        """Scores of the evidence where it is known, else of the order that has a limit of AOPC, float64 [m].

        Args:
            greatest: of the order that loses the most when its first features go first; else that which loses the
                least when its last ones do.
        """
        if self.evidence is not None:
            return self.evidence.double()
        order = self.limits.best if greatest else self.limits.worst.flip(0)
        found = torch.empty(len(order), dtype=torch.float64)
        found[order] = torch.arange(len(order), 0, -1, dtype=torch.float64)
        return found
