"""Judge: what scores texts, what it is given, and several judges as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from inlay.errors import JudgeError
from inlay.scores import Scores


@dataclass(frozen=True)
class Reply:
    """What is judged.

    Attributes:
        prompt: the instruction as the user gave it, without any steering prompt.
        text: the fragment that the model generated.
        concept: the description of the concept that the text should have; `None` where none was asked for.
    """

    prompt: str
    text: str
    concept: str | None = None


@dataclass(frozen=True)
class Axis:
    """What a judge scores.

    Attributes:
        lo, hi: the range.
        meaning: what it says, in a sentence.
    """

    lo: float
    hi: float
    meaning: str

    def scores(
        self, values: list[float | None], raw: list[str] | None = None, failed: list[str | None] | None = None
    ) -> Scores:
        """Scores on this axis."""
        return Scores(values, self.lo, self.hi, self.meaning, raw or [], failed or [])


class Judge(Protocol):
    """Scores texts on named axes. A bench reads `concept`, `instruction` and `fluency`, each 0 to 2."""

    @property
    def axes(self) -> Mapping[str, Axis]:
        """What it scores, by name."""
        ...

    def score(self, replies: Sequence[Reply]) -> dict[str, Scores]:
        """One `Scores` an axis, with one value a reply; `None` where the axis does not apply or judging failed."""
        ...

    def identity(self) -> dict[str, Any]:
        """Its kind, and everything that changes its scores, as plain JSON values: what a run's config records."""
        ...


class Combined:
    """One judge whose axes come from several; a judge that serves several axes is asked once.

    Args:
        of: the judge of each axis, by the axis's name.

    Raises:
        JudgeError: no axis is named, or a judge does not have the axis that it is named for.
    """

    def __init__(self, of: Mapping[str, Judge]) -> None:
        if not of:
            raise JudgeError("a combined judge needs a judge for one axis at least, such as concept=LexiconJudge(...)")
        for name, judge in of.items():
            if name not in judge.axes:
                raise JudgeError(f"{judge!r} has no axis {name!r}; it has: {', '.join(judge.axes)}")
        self.of = dict(of)

    @property
    def axes(self) -> dict[str, Axis]:
        """The axes, in the order in which they were named."""
        return {name: judge.axes[name] for name, judge in self.of.items()}

    def score(self, replies: Sequence[Reply]) -> dict[str, Scores]:
        """See `Judge.score`."""
        judges = {id(judge): judge for judge in self.of.values()}
        found = {key: judge.score(replies) for key, judge in judges.items()}
        return {name: found[id(judge)][name] for name, judge in self.of.items()}

    def identity(self) -> dict[str, Any]:
        """The identity of each axis's judge."""
        return {"kind": "combined", "axes": {name: judge.identity() for name, judge in self.of.items()}}

    @property
    def cost(self) -> str:
        """What its judges have spent, of those that spend."""
        judges = {id(judge): judge for judge in self.of.values()}.values()
        return "; ".join(str(cost) for judge in judges if (cost := getattr(judge, "cost", "")))

    def __repr__(self) -> str:
        return f"combined({', '.join(f'{name}={judge!r}' for name, judge in self.of.items())})"


def combined(**of: Judge) -> Combined:
    """One judge of several, such as `combined(concept=LexiconJudge(...), fluency=LogprobJudge(model))`.

    Args:
        **of: the judge of each axis.

    Raises:
        JudgeError: no axis is named, or a judge does not have the axis that it is named for.
    """
    return Combined(of)
