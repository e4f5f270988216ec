"""Timing by turns: every case runs once a round, so that a slow minute of the machine hits all of them alike."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median, quantiles
from typing import Any

PLAIN = "plain HF"
AGAIN = "plain HF again"


@dataclass(frozen=True)
class Case:
    """One way of doing a section's work.

    Attributes:
        name: the tool and how it is used.
        call: does the work once.
        limit: the greatest ratio to plain HF that is aimed at.
        beside: the case of the section (a bare hook, say) that this one is also divided by.
        beside_limit: the greatest ratio to that one that is aimed at.
        part: the share of the section's work that `call` does, where all of it would take too long; its times are
            divided by it.
    """

    name: str
    call: Callable[[], Any]
    limit: float | None = None
    beside: str | None = None
    beside_limit: float | None = None
    part: float = 1.0


@dataclass(frozen=True)
class Section:
    """Cases that do the same work. The first is what the others are divided by; the second times it again."""

    title: str
    cases: Sequence[Case]
    rounds: int


Plan = tuple[str, Callable[[str], Section]]  # a title, and what builds the section of that title when its turn comes


@dataclass(frozen=True)
class Ratio:
    """The quotient of two cases, taken round by round: its median and its quartiles.

    `cpu` is the same median of CPU time, which leaves out what other processes took from the core; `best` is the least
    CPU time of the one over the least of the other, which leaves out most of what they did to its caches too.
    """

    median: float
    low: float
    high: float
    cpu: float
    best: float


@dataclass(frozen=True)
class Row:
    """What one case gave."""

    section: str
    case: str
    ms: float
    rounds: int
    to_plain: Ratio | None = None
    limit: float | None = None
    beside: str | None = None
    to_beside: Ratio | None = None
    beside_limit: float | None = None
    limit_ms: float | None = None
    tool: str = "inlay"

    def as_json(self) -> dict[str, Any]:
        """The row as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Row:
        """What `as_json` gave, back."""
        ratios = {key: Ratio(**stored[key]) for key in ("to_plain", "to_beside") if stored[key]}
        return cls(**{**stored, **ratios})


@dataclass
class _Times:
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def measure(section: Section, tool: str = "inlay", scale: float = 1.0) -> list[Row]:
    """Run the cases of a section by turns, in a new random order every round, and compare them round by round.

    Args:
        section: the cases.
        tool: what the rows are filed under.
        scale: a factor on the number of rounds.
    """
    rounds = max(3, round(section.rounds * scale))
    order, shuffle = list(section.cases), random.Random(0)
    times = {case.name: _Times() for case in order}
    for case in order:
        case.call()
        case.call()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        for _ in range(rounds):
            shuffle.shuffle(order)
            for case in order:
                wall, cpu = time.perf_counter(), time.thread_time()
                case.call()
                times[case.name].cpu.append((time.thread_time() - cpu) / case.part)
                times[case.name].wall.append((time.perf_counter() - wall) / case.part)
            gc.collect()
    finally:
        gc.enable()
        gc.unfreeze()
    first = section.cases[0].name
    return [
        Row(
            section.title,
            case.name,
            ms=median(times[case.name].wall) * 1e3,
            rounds=rounds,
            to_plain=None if case.name == first else _ratio(times[case.name], times[first]),
            limit=case.limit,
            beside=case.beside,
            to_beside=_ratio(times[case.name], times[case.beside]) if case.beside else None,
            beside_limit=case.beside_limit,
            tool=tool,
        )
        for case in section.cases
    ]


def _ratio(mine: _Times, theirs: _Times) -> Ratio:
    wall = [a / b for a, b in zip(mine.wall, theirs.wall, strict=True)]
    cpu = [a / b for a, b in zip(mine.cpu, theirs.cpu, strict=True)]
    low, middle, high = quantiles(wall, n=4)
    return Ratio(middle, low, high, median(cpu), min(mine.cpu) / min(theirs.cpu))
