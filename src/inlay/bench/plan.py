"""Which replies a run needs: half of the prompts choose Site and factor, the others report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inlay.bench.concept_set import Concept, ConceptSet
from inlay.bench.config import PLAIN
from inlay.bench.metrics import mean, pick_factor, worth
from inlay.bench.steering import Cell
from inlay.directions.direction import Direction
from inlay.errors import BenchError


@dataclass(frozen=True)
class Halves:
    """Prompt numbers of a concept: those that choose and those that report."""

    choose: range
    report: range


def halves(concepts: ConceptSet, split: float) -> dict[int, Halves]:
    """The prompts of each concept, split in order.

    Args:
        concepts: the set.
        split: the share that chooses; at least one prompt is in each half.

    Raises:
        BenchError: a concept has fewer than two prompts, or one twice.
    """
    found = {}
    for concept in concepts.concepts:
        prompts = concepts.prompts.get(concept.id, [])
        n = len(prompts)
        if n < 2:
            raise BenchError(
                f"{concepts.name}: concept {concept.id} ({concept.name!r}) has {n} steering prompt(s); steering needs "
                "two: give --prompts FILE with one instruction a line"
            )
        if len(set(prompts)) < n:
            raise BenchError(
                f"{concepts.name}: concept {concept.id} has a steering prompt twice; what chooses must not report"
            )
        middle = min(max(round(n * split), 1), n - 1)
        found[concept.id] = Halves(range(middle), range(middle, n))
    return found


def plain_of(concepts: ConceptSet, concept: Concept) -> tuple[str, ...]:
    """The rows of a concept that have no factor; `simple_prompt` where `prompt` is a sentence of the concept's own."""
    return PLAIN if concept.ask and concepts.world is None else PLAIN[:2]


def choosing(
    concepts: ConceptSet, directions: Sequence[Direction], factors: Sequence[float], of: Mapping[int, Halves]
) -> list[Cell]:
    """The cells of the choosing prompts: every direction at every factor, and the rows without one."""
    names = {c.name: c.id for c in concepts.concepts}
    plain = [Cell(m, c.id, p) for c in concepts.concepts for m in plain_of(concepts, c) for p in of[c.id].choose]
    steered = [
        Cell(d.method, names[d.concept], p, str(d.site), factor)
        for d in directions
        for p in of[names[d.concept]].choose
        for factor in factors
    ]
    return plain + steered


@dataclass(frozen=True)
class Choice:
    """A Site and a factor."""

    site: str
    factor: float


@dataclass(frozen=True)
class Picked:
    """What the choosing prompts say.

    Attributes:
        own: by method and concept id.
        shared: by method, the one that is best on average over concepts.
    """

    own: dict[tuple[str, int], Choice]
    shared: dict[str, Choice]


def pick(rows: Iterable[Mapping[str, Any]]) -> Picked:
    """Choose for every method and concept, from rows of the choosing prompts; rows without a factor have no choice.

    The factor with the best mean overall score, the smallest on ties; of several Sites the first on ties.
    """
    scores: dict[str, dict[int, dict[str, dict[float, list[float | None]]]]] = {}
    for row in rows:
        if row["method"] not in PLAIN:
            by_site = scores.setdefault(row["method"], {}).setdefault(row["concept_id"], {})
            by_site.setdefault(row["site"], {}).setdefault(row["factor"], []).append(row["overall"])
    own = {(method, c): _best(by_site) for method, each in scores.items() for c, by_site in each.items()}
    shared = {}
    for method, each in scores.items():
        pooled: dict[str, dict[float, list[float | None]]] = {}
        for by_site in each.values():
            for site, by_factor in by_site.items():
                for factor, values in by_factor.items():
                    pooled.setdefault(site, {}).setdefault(factor, []).append(mean(values))
        shared[method] = _best(pooled)
    return Picked(own, shared)


def _best(by_site: Mapping[str, Mapping[float, Sequence[float | None]]]) -> Choice:
    best: tuple[float, Choice] | None = None
    for site, by_factor in by_site.items():
        factor = pick_factor(by_factor)
        value = worth(by_factor[factor])
        if best is None or value > best[0]:
            best = (value, Choice(site, factor))
    assert best is not None
    return best[1]


def reporting(concepts: ConceptSet, picked: Picked, of: Mapping[int, Halves]) -> list[Cell]:
    """The cells of the reporting prompts: each method at each concept's own choice and at the shared one."""
    cells = [Cell(m, c.id, p) for c in concepts.concepts for m in plain_of(concepts, c) for p in of[c.id].report]
    for (method, concept), own in picked.own.items():
        for choice in dict.fromkeys((own, picked.shared[method])):
            cells += [Cell(method, concept, p, choice.site, choice.factor) for p in of[concept].report]
    return cells
