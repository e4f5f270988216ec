"""SPLIT and PRISM: language modelling of both responses, with a margin between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from inlay.train.objectives.settings import at_least

if TYPE_CHECKING:
    from inlay.train.step import Step


def margin(chosen: Tensor, rejected: Tensor, weight: float = 0.6, gap: float = 0.5, pull: float = 4.0) -> Tensor:
    """NLL+ + weight NLL- + pull relu(gap - (NLL- - NLL+)), [R] (2602.02343).

    Args:
        chosen, rejected: NLL+ and NLL-, the mean cross entropy of each response's tokens, [R].
        weight: of the rejected response's likelihood, which keeps the text fluent.
        gap: by how much the rejected response is to be less likely, in nats a token.
        pull: the weight of what lacks of that.
    """
    return chosen + weight * rejected + pull * (gap - (rejected - chosen)).relu()


@dataclass(frozen=True)
class Split:
    """SPLIT (2602.02343): both responses stay likely, and the chosen one by a margin more; see `margin`.

    Attributes:
        weight, gap, pull: see `margin`; all at least 0.

    Raises:
        TrainError: a setting is out of range.
    """

    weight: float = 0.6
    gap: float = 0.5
    pull: float = 4.0

    sides: ClassVar[tuple[str, ...]] = ("chosen", "rejected")

    def __post_init__(self) -> None:
        at_least(0, weight=self.weight, gap=self.gap, pull=self.pull)

    def __call__(self, step: Step) -> Tensor:
        """The contributions of the examples, [R]."""
        chosen, rejected = step.run("chosen", "rejected", factor=step.factors())
        wanted, unwanted = (-ran.logps / ran.lengths for ran in (chosen, rejected))
        return step.per_row(margin(wanted, unwanted, self.weight, self.gap, self.pull))


@dataclass(frozen=True)
class Prism(Split):
    """PRISM (2602.02343): `Split` with a stronger pull.

    Attributes:
        pull: see `margin`.
    """

    pull: float = 5.0
