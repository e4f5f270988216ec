"""What a training gives: the Edit, by concept, and how it went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inlay.errors import TrainError
from inlay.interventions.edit import Edit
from inlay.train.banks import row
from inlay.train.log import RunLog


@dataclass(frozen=True)
class Trained:
    """A finished training.

    Attributes:
        edit: the Edit; of many concepts one of Banks, whose row k + 1 is concept k's.
        concepts: their names, in the order of the rows; one empty name where a single Edit was trained.
        log: the rows of the run.
        facts: settings, and of each concept its examples, its planned steps, after how many it `stopped`, its lowest
            held-out loss, and whether it diverged.
    """

    edit: Edit
    concepts: Sequence[str]
    log: RunLog
    facts: Mapping[str, Any]

    def __getitem__(self, concept: str) -> Edit:
        """The Edit of one concept.

        Raises:
            TrainError: there is no such concept.
        """
        return row(self.edit, self.row(concept)) if self._many else self.edit

    def row(self, concept: str) -> int:
        """Which row of the Banks is a concept's.

        Raises:
            TrainError: there is no such concept.
        """
        if concept not in self.concepts:
            raise TrainError(f"{concept!r} was not trained; these were: {', '.join(map(repr, self.concepts))}")
        return list(self.concepts).index(concept) + 1

    @property
    def _many(self) -> bool:
        return list(self.concepts) != [""]
