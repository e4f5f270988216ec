"""What one forward call shares between all of its Sites, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from torch import Tensor

from inlay.errors import EditError
from inlay.model.call import PartLike, State
from inlay.model.frame import Frame, Selection
from inlay.model.sites import Site
from inlay.model.tokens import Tokens


class Stop(BaseException):
    """Leaves a forward once the last wanted Site was read. Never seen outside of a read."""


@dataclass(frozen=True)
class Want:
    """A Site to read, and at which tokens."""

    site: Site
    tokens: Tokens
    before: bool = False


@dataclass
class Taken:
    """What one call gave at one Site.

    Attributes:
        values: [R, k, W], the selected positions of every row side by side.
        real: bool [R, k], which of them exist; `None` for all.
        whole: the tensor as it lies in the module, kept where a gradient is wanted.
    """

    values: Tensor
    real: Tensor | None
    whole: Tensor | None = None


@dataclass
class Pass:
    """What is settled once per forward call and shared by all Sites of it."""

    frame: Frame
    states: list[State]
    chosen: list[Selection]
    strength: Tensor | None
    rows: Tensor | None
    keys: Tensor | None = None
    verdicts: dict[Any, Tensor] = field(default_factory=dict)
    gathers: dict[int, tuple[Tensor, Tensor] | None] = field(default_factory=dict)
    kept: dict[int, Tensor] = field(default_factory=dict)


@dataclass
class Tally:
    """What an Edit touched over the batches of a job: one batch may miss a part, all of them may not."""

    calls: int = 0
    touched: list[int] = field(default_factory=list)
    chosen: list[int] = field(default_factory=list)

    def add(self, calls: int, touched: Sequence[int], chosen: Sequence[int]) -> None:
        """Count one run."""
        self.calls += calls
        self.touched = [a + b for a, b in zip_longest(self.touched, touched, fillvalue=0)]
        self.chosen = [a + b for a, b in zip_longest(self.chosen, chosen, fillvalue=0)]

    def check(self, parts: Sequence[PartLike]) -> None:
        """Raise where a part changed nothing.

        Raises:
            EditError: naming the part and why.
        """
        for part, (index, count), chosen in zip(parts, enumerate(self.touched), self.chosen, strict=False):
            if part.tokens.optional and not chosen:
                continue
            if not (count if part.when is None else chosen):  # a condition may hold nowhere
                why = "its module did not run" if chosen else "no position was selected"
                raise EditError(
                    f"part {index} of the Edit ({part.site}, tokens={str(part.tokens)!r}) changed nothing in "
                    f"{self.calls} forward call(s): {why}. Decoding feeds the first new token only in its second "
                    "call; text without a marked response is all prompt"
                )
