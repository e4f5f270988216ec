"""WorldJudge: exact scores of replies, by a world's own truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from inlay.errors import WorldError
from inlay.judges.judge import Axis, Reply
from inlay.scores import Scores
from inlay.world.line import Line
from inlay.world.scores import AXES
from inlay.world.world import World


class WorldJudge:
    """Scores replies by what a world knows of its language, its instructions and its concepts.

    `concept`, `instruction` and `fluency` are 0, 1 or 2; see `inlay.world.judge`. `instruction` is `None` where the
    world has no such instruction, `concept` where none was asked for.

    Args:
        world: whose truth it is.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.axes = {name: Axis(0.0, *AXES[name]) for name in ("concept", "instruction", "fluency")}
        self._scorer = world.judge()
        self._lines: dict[tuple[str, str | None], Line | None] = {}

    def score(self, replies: Sequence[Reply]) -> dict[str, Scores]:
        """See `Judge.score`.

        Raises:
            WorldError: the world has no concept of a reply's description.
        """
        rows = [self._one(reply) for reply in replies]
        return {name: axis.scores([row.get(name) for row in rows]) for name, axis in self.axes.items()}

    def identity(self) -> dict[str, Any]:
        """Its kind, and the world's version and hash."""
        return {"kind": "world", "version": self.world.spec.version, "hash": self.world.hash}

    def _one(self, reply: Reply) -> dict[str, float]:
        line = self._line(reply.prompt, reply.concept)
        if line is not None:
            return {name: float(score) for name, score in self._scorer.one(line, reply.text).items()}
        scores = {"fluency": float(self.world.fluency(reply.text))}
        if reply.concept is not None:
            scores["concept"] = float(self.world.concept_score(reply.concept, reply.text))
        return scores

    def _line(self, prompt: str, description: str | None) -> Line | None:
        """The line that a prompt stands for, `None` where the world knows no such instruction."""
        key = (prompt, description)
        if key not in self._lines:
            concept = None if description is None else self.world.concept(description)
            try:
                self._lines[key] = self.world.talk(prompt, concept)
            except WorldError:
                self._lines[key] = None
        return self._lines[key]

    def __repr__(self) -> str:
        return f"WorldJudge({self.world.spec.version})"
