"""Preference objectives: the chosen response is to be likelier than the rejected one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from inlay.train.objectives import pairs
from inlay.train.objectives.settings import at_least, positive

if TYPE_CHECKING:
    from inlay.train.step import Step

_PAIR = ("chosen", "rejected")


@dataclass(frozen=True)
class DPO:
    """Direct preference optimisation (2305.18290), with the frozen model as the reference; see `pairs.dpo`.

    Attributes:
        beta: how strongly the Edit is held to the frozen model, above 0.

    Raises:
        TrainError: beta is not above 0.
    """

    beta: float = 0.1

    sides: ClassVar[tuple[str, ...]] = _PAIR
    references: ClassVar[tuple[str, ...]] = _PAIR

    def __post_init__(self) -> None:
        positive(beta=self.beta)

    def __call__(self, step: Step) -> Tensor:
        """The contributions of the examples, [R]."""
        return step.per_row(pairs.dpo(*_scored(step), self.beta))


@dataclass(frozen=True)
class IPO:
    """Identity preference optimisation (2310.12036); see `pairs.ipo`.

    Attributes:
        beta: the difference of log-ratios is drawn to 1 / (2 beta), above 0.

    Raises:
        TrainError: beta is not above 0.
    """

    beta: float = 0.1

    sides: ClassVar[tuple[str, ...]] = _PAIR
    references: ClassVar[tuple[str, ...]] = _PAIR

    def __post_init__(self) -> None:
        positive(beta=self.beta)

    def __call__(self, step: Step) -> Tensor:
        """The contributions of the examples, [R]."""
        return step.per_row(pairs.ipo(*_scored(step), self.beta))


@dataclass(frozen=True)
class APOZero:
    """Anchored preference optimisation, zero (2408.06266); see `pairs.apo_zero`.

    For chosen responses that are better than the model's own.

    Attributes:
        beta: the scale of the log-ratios, above 0.

    Raises:
        TrainError: beta is not above 0.
    """

    beta: float = 0.1

    sides: ClassVar[tuple[str, ...]] = _PAIR
    references: ClassVar[tuple[str, ...]] = _PAIR

    def __post_init__(self) -> None:
        positive(beta=self.beta)

    def __call__(self, step: Step) -> Tensor:
        """The contributions of the examples, [R]."""
        return step.per_row(pairs.apo_zero(*_scored(step), self.beta))


@dataclass(frozen=True)
class BiPO:
    """Bidirectional preference optimisation (2406.00045): at strength a the chosen, at -a the rejected response.

    The loss of an example is the mean of the two directions, which the paper draws one of in each step.

    Attributes:
        beta: how strongly the Edit is held to the frozen model, above 0.

    Raises:
        TrainError: beta is not above 0.
    """

    beta: float = 1.0

    sides: ClassVar[tuple[str, ...]] = _PAIR
    references: ClassVar[tuple[str, ...]] = _PAIR

    def __post_init__(self) -> None:
        positive(beta=self.beta)

    def __call__(self, step: Step) -> Tensor:
        """The contributions of the examples, [R]."""
        factor = step.factors()
        ref_chosen, ref_rejected = step.reference("chosen"), step.reference("rejected")
        chosen, rejected = step.run(*_PAIR, factor=factor)
        along = pairs.bipo(chosen.logps, rejected.logps, ref_chosen, ref_rejected, self.beta)
        chosen, rejected = step.run(*_PAIR, factor=-factor)
        against = pairs.bipo(rejected.logps, chosen.logps, ref_rejected, ref_chosen, self.beta)
        return step.per_row((along + against) / 2)


@dataclass(frozen=True)
class SimPO:
    """Simple preference optimisation (2405.14734), without a reference; see `pairs.simpo`. The defaults are TRL's.

    Attributes:
        beta: the scale of the mean log-probs, above 0.
        gamma: the margin, at least 0.

    Raises:
        TrainError: a setting is out of range.
    """

    beta: float = 0.1
    gamma: float = 0.5

    sides: ClassVar[tuple[str, ...]] = _PAIR

    def __post_init__(self) -> None:
        positive(beta=self.beta)
        at_least(0, gamma=self.gamma)

    def __call__(self, step: Step) -> Tensor:
        """The contributions of the examples, [R]."""
        win, lose = step.run(*_PAIR, factor=step.factors())
        return step.per_row(pairs.simpo(win.logps, lose.logps, win.lengths, lose.lengths, self.beta, self.gamma))


def _scored(step: Step) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probs of the chosen and the rejected responses under the Edit, then by the frozen model."""
    chosen, rejected = step.run(*_PAIR, factor=step.factors())
    return chosen.logps, rejected.logps, step.reference("chosen"), step.reference("rejected")
