"""What one forward call shares between all of its Sites, and what it leaves behind."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from inlay.model.call import State
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
    gathers: dict[int, tuple[Tensor, Tensor] | None] = field(default_factory=dict)
    kept: dict[int, Tensor] = field(default_factory=dict)
