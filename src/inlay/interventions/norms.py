"""Steering that keeps the length of the state: any intervention rescaled, and the rotation in a plane."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from inlay.errors import EditError
from inlay.interventions import families
from inlay.interventions.base import Intervention, keep, kind_of, unit
from inlay.model.call import Call, State
from inlay.model.sites import Site
from inlay.model.tokens import Tokens


class KeepNorm(Intervention):
    """What another intervention makes of h, scaled back to the length of h at every position: f(h) |h| / |f(h)|.

    A state that f makes zero stays zero. The strength is that of f's change, before the rescaling. Where f leaves h
    as it is, so does this.

    Args:
        inner: f, any intervention but a Bank (make a Bank of KeepNorms instead).

    Raises:
        EditError: it is a Bank, or no intervention.
    """

    kind = "keep_norm"

    def __init__(self, inner: Intervention) -> None:
        super().__init__()
        if not isinstance(inner, Intervention):
            raise EditError(f"KeepNorm(inner) is an intervention such as Add(v), not {inner!r:.60}")
        if inner.banked:
            raise EditError("KeepNorm of a Bank: make a Bank of them, Bank([KeepNorm(a), KeepNorm(b)])")
        self.inner = inner
        self.source, self.needs, self.pooled = inner.source, inner.needs, inner.pooled
        self.indices, self.shares = inner.indices, inner.shares

    def state(self) -> dict[str, Tensor]:
        """That of f."""
        return self.inner.state()

    def prepare(self, state: State) -> State:
        """As f."""
        return self.inner.prepare(state)

    def config(self) -> dict[str, Any]:
        """What kind f is, and its configuration."""
        return {"kind": kind_of(self.inner), "config": self.inner.config()}

    @classmethod
    def rebuild(cls, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> Intervention:
        """Around f, made again."""
        return cls(Intervention.kinds[config["kind"]].rebuild(state, config["config"]))

    def with_source(self, source: Any) -> Self:
        """The same with f's other source."""
        return type(self)(self.inner.with_source(source))

    def asks(self, model: Any, site: Site, tokens: Tokens) -> tuple[Site, Tokens]:
        """As f."""
        return self.inner.asks(model, site, tokens)

    def reduce(self, values: Tensor, real: Tensor | None) -> Tensor | None:
        """As f."""
        return self.inner.reduce(values, real)

    def check(self, width: int, site: str) -> None:
        """As f."""
        self.inner.check(width, site)

    def width(self) -> int | None:
        """That of f."""
        return self.inner.width()

    def transform(self, h: Tensor, state: State, call: Call) -> Tensor:
        """See `families.of_length`."""
        return families.of_length(self.inner.transform(h, state, call), h)


class Angular(Intervention):
    """Turn the state in a plane to an angle: h - P h + |P h| (cos a b1 + sin a b2) (Angular Steering, 2510.26243).

    P projects on the plane of b1 and b2; b1 is the first direction scaled to length 1, and b2 what the second has
    orthogonally to it, scaled to length 1. a is counted from b1 to b2: at 0 the state's part in the plane lies along
    b1, at 180 along -b1. The length of h stays as it is (at a strength of 1; between 0 and 1 the way is a chord).

    Args:
        first: the feature's direction, float [width], any length but 0.
        second: another direction that spans the plane, such as the first principal component of the layers' directions.
        degrees: a.
        adaptive: turn only the states that have the feature, h.b1 > 0.

    Raises:
        EditError: the directions are parallel, or the angle is not finite.
    """

    kind = "angular"
    holds = ("first", "second", "degrees")

    def __init__(self, first: Any, second: Any, degrees: float, adaptive: bool = False) -> None:
        super().__init__()
        along, other = (unit(values, "Angular(direction)") for values in (first, second))
        if along.shape != other.shape:
            raise EditError(f"Angular: the directions have widths {len(along)} and {len(other)}")
        wide = torch.promote_types(along.dtype, other.dtype)
        along, other = along.to(wide), other.to(wide)
        across = other - (other @ along) * along
        if float(across.norm()) < 1e-4:
            raise EditError("Angular: the two directions are parallel and span no plane; give another second one")
        if not abs(degrees) < float("inf"):
            raise EditError(f"Angular(degrees={degrees}): give a finite angle")
        keep(self, "first", along)
        keep(self, "second", across / across.norm())
        keep(self, "degrees", torch.tensor(float(degrees), dtype=torch.float64))
        self.adaptive = adaptive

    def width(self) -> int:
        """The length of the directions' vectors."""
        return int(self.state()["first"].shape[-1])

    def config(self) -> dict[str, Any]:
        """Whether it is adaptive."""
        return {"adaptive": self.adaptive}

    def transform(self, h: Tensor, state: State, call: Call) -> Tensor:
        """See `families.turn`."""
        return families.turn(h, state["first"], state["second"], state["degrees"], self.adaptive, call.strength)

    def extra_repr(self) -> str:
        """The angle."""
        return f"width={self.width()}, degrees={float(self.state()['degrees']):g}, adaptive={self.adaptive}"
