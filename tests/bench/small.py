"""A small bench: tidepool's model, a few of its concepts, and a judge that scores any text and can fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import inlay
from inlay.bench.concept_set import ConceptSet
from inlay.directions.direction import Direction
from inlay.directions.find import find
from inlay.judges.judge import Axis, Reply
from inlay.scores import Scores

AXES = ("concept", "instruction", "fluency")


@cache
def model() -> inlay.Model:
    return inlay.load("tidepool")


@cache
def concepts(n: int = 3, prompts: int = 4) -> ConceptSet:
    return ConceptSet.load("tidepool", rows=6, n_prompts=prompts).first(n)


@cache
def directions(*sites: str, methods: tuple[str, ...] = ("diff_mean", "random"), n: int = 3) -> tuple[Direction, ...]:
    made = concepts(n)
    pairs = {c: [made.of(c, "train", side) for side in ("positive", "negative")] for c in made.concepts}
    texts = {row: inlay.directions.Text(row.input, row.output) for sides in pairs.values() for r in sides for row in r}
    return tuple(find(model(), [made.contrast(c, texts) for c in made.concepts], methods, sites))


class Judge:
    """Scores a text by its letters: no language is known, and every text has its own scores.

    Args:
        broken: says of a reply why it cannot be judged, `None` where it can.
        name: of the judge, in its identity.
    """

    def __init__(self, broken: Callable[[Reply], str | None] = lambda reply: None, name: str = "letters") -> None:
        self.axes = {axis: Axis(0.0, 2.0, f"letters, for {axis}") for axis in AXES}
        self.broken, self.name = broken, name
        self.seen: list[Reply] = []

    def score(self, replies: Sequence[Reply]) -> dict[str, Scores]:
        self.seen += replies
        failed = [self.broken(reply) for reply in replies]
        found = {}
        for axis, of in self.axes.items():
            values = [
                self.value(axis, reply) if why is None else None for reply, why in zip(replies, failed, strict=True)
            ]
            found[axis] = of.scores(values, failed=failed)
        return found

    def identity(self) -> dict[str, Any]:
        return {"kind": self.name}

    @staticmethod
    def value(axis: str, reply: Reply) -> float | None:
        return (sum(map(ord, reply.text)) + len(reply.concept or "") * AXES.index(axis)) % 5 / 2


class Killed(BaseException):
    """What a test ends a run with, as a signal would."""
