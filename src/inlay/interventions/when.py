"""When: apply a part of an Edit only where a condition on another Site holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from inlay.errors import EditError
from inlay.interventions.base import unit
from inlay.interventions.function import Function
from inlay.model.sites import Site
from inlay.model.tokens import Tokens

POOLS = ("any", "mean")


class Condition(nn.Module):
    """What decides where a part of an Edit acts: a `When`, or some of them joined by `&`, `|` and `~`."""

    def leaves(self) -> tuple[When, ...]:
        """The single conditions that it is made of."""
        raise NotImplementedError

    def holds(self, verdicts: Mapping[When, Tensor]) -> Tensor:
        """Where it holds, bool [rows, tokens] or [rows, 1], given where each of its leaves does."""
        raise NotImplementedError

    def pick(self, rows: Sequence[int], total: int, longest: int | None = None) -> Condition:
        """The same for some rows of a batch; see `Tokens.pick`."""
        raise NotImplementedError

    def describe(self, state: dict[str, Tensor], prefix: str) -> dict[str, Any]:
        """Itself as JSON values; its tensors are put into `state`, their names after `prefix`."""
        raise NotImplementedError

    def forward(self, *_: Any, **__: Any) -> Any:
        """Not callable: a condition decides inside a model.

        Raises:
            EditError: always.
        """
        raise EditError("a condition decides inside a model: Edit(site, intervention, when=condition)")

    def __and__(self, other: Condition) -> Condition:
        return Joined("and", (self, other))

    def __or__(self, other: Condition) -> Condition:
        return Joined("or", (self, other))

    def __invert__(self) -> Condition:
        return Joined("not", (self,))


class When(Condition):
    """A test of the state at one Site, for every row and token by itself or once for a row.

    The score of a state is its component along a direction, or what a function makes of it; it is held against
    `above` and `below`. Without `tokens` every position decides for itself. With `tokens` a row decides at these and
    keeps its verdict for all of its positions from then on, through a whole generation (conditional activation
    steering, 2409.05907, decides so at the prompt).

    Args:
        site: one Site of one layer, which the forward reaches before that of the Edit. It is seen as the Edit's earlier
            parts leave it.
        test: a direction, float [width], scaled to length 1 (the score then has the Site's own units), or a function or
            module that makes of states [rows, tokens, width] scores or truth values [rows, tokens].
        above: the score must be greater.
        below: the score must be less.
        tokens: where a row decides; `None`: every position for itself.
        pool: `"any"`: one of the positions at `tokens` passes; `"mean"`: their mean state does.

    Raises:
        EditError: no bound with a direction, bounds that exclude each other, or an unknown `pool`.
    """

    def __init__(
        self,
        site: str | Site,
        test: Any,
        *,
        above: float | None = None,
        below: float | None = None,
        tokens: Any = None,
        pool: str = "any",
    ) -> None:
        super().__init__()
        self.site = Site.parse(site)
        self.above, self.below = above, below
        self.tokens = None if tokens is None else Tokens.parse(tokens)
        self.pool = pool
        self.scorer: Function | None = None
        if callable(test):
            self.scorer = Function(test)
        else:
            self.register_buffer("direction", unit(test, "When(test)"))
            if above is None and below is None:
                raise EditError("When(site, direction) needs a bound on the component: above= or below=")
        if above is not None and below is not None and not above < below:
            raise EditError(f"When(above={above}, below={below}) holds nowhere: above must be less than below")
        if self.site.every:
            raise EditError(f"When(site={str(self.site)!r}) names every layer: a condition is read at one")
        if pool not in POOLS:
            raise EditError(f"When(pool={pool!r}): one of {', '.join(map(repr, POOLS))}")
        if pool == "mean" and tokens is None:
            raise EditError("When(pool='mean') needs tokens=: the positions whose mean state is tested")

    def leaves(self) -> tuple[When, ...]:
        """Itself."""
        return (self,)

    def holds(self, verdicts: Mapping[When, Tensor]) -> Tensor:
        """Its own verdict."""
        return verdicts[self]

    def passes(self, h: Tensor) -> Tensor:
        """Which of the states h [rows, tokens, width] pass, bool [rows, tokens].

        Raises:
            EditError: a function gave another shape, or numbers without a bound.
        """
        with torch.no_grad():
            score = self._score(h)
            if score.dtype == torch.bool:
                return score
            passed = torch.ones_like(score, dtype=torch.bool)
            if self.above is not None:
                passed = passed & (score > self.above)
            if self.below is not None:
                passed = passed & (score < self.below)
            return passed

    def _score(self, h: Tensor) -> Tensor:
        if self.scorer is None:
            direction = self.get_buffer("direction")
            wide = torch.promote_types(h.dtype, torch.float32)
            return h.to(wide) @ direction.to(h.device, wide)
        score: Any = self.scorer.f(h)
        if not isinstance(score, Tensor) or score.shape != h.shape[:2]:
            what = list(score.shape) if isinstance(score, Tensor) else type(score).__name__
            raise EditError(
                f"When({self.site}): the test returned {what} for states {list(h.shape)}, not [rows, tokens]"
            )
        if score.dtype != torch.bool and self.above is None and self.below is None:
            raise EditError(f"When({self.site}): the test returned numbers; give above= or below=, or return bool")
        return score

    def pick(self, rows: Sequence[int], total: int, longest: int | None = None) -> Condition:
        """Itself, where its tokens belong to no single row."""
        if self.tokens is None or self.tokens.storable:
            return self
        test = self.get_buffer("direction") if self.scorer is None else self.scorer.f
        tokens = self.tokens.pick(rows, total, longest)
        return When(self.site, test, above=self.above, below=self.below, tokens=tokens, pool=self.pool)

    def describe(self, state: dict[str, Tensor], prefix: str) -> dict[str, Any]:
        """Its Site, tokens and bounds, and its direction or its function's import path.

        Raises:
            EditError: its tokens or its function live only in memory.
        """
        if self.tokens is not None and not self.tokens.storable:
            raise EditError(f"When(tokens={self.tokens}) belongs to one batch and cannot be saved")
        scorer = None if self.scorer is None else self.scorer.config()
        tensors = {"direction": self.get_buffer("direction")} if self.scorer is None else self.scorer.state()
        state |= {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}
        return {
            "site": str(self.site),
            "tokens": None if self.tokens is None else str(self.tokens),
            "above": self.above,
            "below": self.below,
            "pool": self.pool,
            "scorer": scorer,
            "tensors": list(tensors),
        }

    def extra_repr(self) -> str:
        """The Site, the bounds and the tokens."""
        bounds = [
            f"{name}={value:g}" for name, value in (("above", self.above), ("below", self.below)) if value is not None
        ]
        tokens = [] if self.tokens is None else [f"tokens={str(self.tokens)!r}", f"pool={self.pool!r}"]
        return ", ".join([str(self.site), *bounds, *tokens])


class Joined(Condition):
    """Conditions joined by `and`, `or` or `not`."""

    def __init__(self, how: str, parts: Sequence[Condition]) -> None:
        super().__init__()
        self.how = how
        self.parts = nn.ModuleList(parts)

    def _each(self, call: Callable[[Condition], Any]) -> list[Any]:
        return [call(part) for part in self.parts if isinstance(part, Condition)]

    def leaves(self) -> tuple[When, ...]:
        """Those of its parts."""
        return tuple(leaf for leaves in self._each(lambda part: part.leaves()) for leaf in leaves)

    def holds(self, verdicts: Mapping[When, Tensor]) -> Tensor:
        """Its parts' verdicts, joined; one of a whole row counts at each of its tokens."""
        first, *rest = self._each(lambda part: part.holds(verdicts))
        held: Tensor = ~first if self.how == "not" else first
        for one in rest:
            held = held & one if self.how == "and" else held | one
        return held

    def pick(self, rows: Sequence[int], total: int, longest: int | None = None) -> Condition:
        """Of its parts."""
        return Joined(self.how, self._each(lambda part: part.pick(rows, total, longest)))

    def describe(self, state: dict[str, Tensor], prefix: str) -> dict[str, Any]:
        """Its parts' descriptions."""
        parts = [p for p in self.parts if isinstance(p, Condition)]
        return {"how": self.how, "parts": [p.describe(state, f"{prefix}.{i}") for i, p in enumerate(parts)]}


def described(said: Mapping[str, Any], state: Mapping[str, Tensor], prefix: str) -> Condition:
    """The condition that `describe` told of.

    Raises:
        KeyError, EditError: the description or a tensor is not complete.
    """
    if "how" in said:
        return Joined(said["how"], [described(p, state, f"{prefix}.{i}") for i, p in enumerate(said["parts"])])
    tensors = {name: state[f"{prefix}.{name}"] for name in said["tensors"]}
    test: Any = tensors.get("direction")
    if said["scorer"] is not None:
        function = Function.rebuild(tensors, {**said["scorer"], "source": None})
        assert isinstance(function, Function)
        test = function.f
    options = {name: said[name] for name in ("above", "below", "tokens", "pool")}
    return When(said["site"], test, **options)
