"""RePS: prefer the concept under the Edit, and its absence under the Edit's null."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from inlay.errors import TrainError
from inlay.train.objectives.pairs import reps

if TYPE_CHECKING:
    from inlay.train.step import Ran, Step

LENGTHS = ("response", "sequence")


@dataclass(frozen=True)
class RePS:
    """Reference-free preference steering (2505.20809), in both directions: steer, and suppress.

    Under the Edit at random strengths the chosen response is preferred to the rejected one; under its null (what
    suppresses: an intervention's own `null()`, or the negative strength where it has none) the rejected one is. The
    loss of an example is the mean of the two. The paper's is their sum, which differs only in what is clipped.

    Attributes:
        length: what a log-prob is divided by: the tokens of the `"response"`, as in the paper, or of the whole
            `"sequence"`, prompt and template included, as in its code and its published numbers.
        shared_factor: one random strength for all runs of an example; by default each draws its own, as in the code.

    Raises:
        TrainError: `length` is neither.
    """

    length: str = "response"
    shared_factor: bool = False

    sides: ClassVar[tuple[str, ...]] = ("chosen", "rejected")
    references: ClassVar[tuple[str, ...]] = ("chosen", "rejected")

    def __post_init__(self) -> None:
        if self.length not in LENGTHS:
            raise TrainError(f"length={self.length!r}: {' or '.join(map(repr, LENGTHS))}")

    def __call__(self, step: Step) -> Tensor:
        """The contributions of the examples, [R]."""
        factors = [step.factors(0 if self.shared_factor else which) for which in range(4)]
        ref_chosen, ref_rejected = step.reference("chosen"), step.reference("rejected")
        chosen, rejected = step.run("chosen", "rejected", factor=factors[:2])
        wanted = self._loss(chosen, rejected, ref_chosen, ref_rejected)
        chosen, rejected = step.run("chosen", "rejected", factor=factors[2:], null=True)
        unwanted = self._loss(rejected, chosen, ref_rejected, ref_chosen)
        return step.per_row((wanted + unwanted) / 2)

    def _loss(self, win: Ran, lose: Ran, ref_win: Tensor, ref_lose: Tensor) -> Tensor:
        lengths = [ran.lengths if self.length == "response" else ran.totals for ran in (win, lose)]
        return reps(win.logps, lose.logps, ref_win, ref_lose, *lengths)
