"""Lang: make the chosen response likely."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

if TYPE_CHECKING:
    from inlay.train.step import Step


@dataclass(frozen=True)
class Lang:
    """Language modelling: the mean cross entropy of the chosen response's tokens (ReFT, 2404.03592 equation 4).

    With random strengths on a steering vector it is the Lang. of RePS (2505.20809); on a vector without a bias, started
    at 0.01 and trained without clipping at strength 1, it is SSV (AxBench, 2501.17148).
    """

    sides: ClassVar[tuple[str, ...]] = ("chosen",)

    def __call__(self, step: Step) -> Tensor:
        """The contributions of the examples, [R]."""
        (chosen,) = step.run("chosen", factor=step.factors())
        return step.per_token(-chosen.logps)
