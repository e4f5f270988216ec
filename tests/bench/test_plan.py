"""Which prompts choose, which report, and what is chosen."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inlay.bench.concept_set import Concept, ConceptSet
from inlay.bench.plan import Choice, Halves, Picked, choosing, halves, pick, reporting
from inlay.bench.steering import Cell
from inlay.directions.direction import Direction
from inlay.errors import BenchError

CONCEPTS = (Concept(0, "sea"), Concept(5, "tea"))


def concepts(*counts: int) -> ConceptSet:
    prompts = {c.id: [f"ask {n}" for n in range(count)] for c, count in zip(CONCEPTS, counts, strict=True)}
    return ConceptSet("mine", CONCEPTS, (), (), prompts)


def direction(concept: str, method: str = "pca", site: str = "resid_post.1") -> Direction:
    return Direction(torch.ones(4), site, 1.0, method, concept)


@pytest.mark.parametrize(
    ("n", "split", "middle"), [(10, 0.5, 5), (2, 0.01, 1), (2, 0.99, 1), (5, 0.3, 2), (4, 0.95, 3), (3, 0.34, 1)]
)
def test_halves_are_disjoint_and_whole(n: int, split: float, middle: int) -> None:
    made = halves(concepts(n, 2), split)
    assert made[0] == Halves(range(middle), range(middle, n))
    assert made[5] == Halves(range(1), range(1, 2))


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_prompts(n: int) -> None:
    with pytest.raises(BenchError, match=rf"mine: concept 5 \('tea'\) has {n} steering prompt\(s\); .*--prompts FILE"):
        halves(concepts(2, n), 0.5)


def test_the_choosing_cells() -> None:
    made = concepts(3, 2)
    cells = choosing(
        made, [direction("sea"), direction("tea"), direction("sea", site="embed")], (1.0, -2.0), halves(made, 0.67)
    )
    assert len(cells) == len({cell.key for cell in cells}) == 2 * 3 + 2 * 2 + 2 + 2 * 2
    assert Cell("unsteered", 0, 1) in cells and Cell("prompt", 5, 0) in cells
    assert Cell("pca", 0, 1, "embed", -2.0) in cells and Cell("pca", 5, 0, "resid_post.1", 1.0) in cells
    assert {cell.prompt_id for cell in cells if cell.concept_id == 0} == {0, 1}
    assert {cell.prompt_id for cell in cells if cell.concept_id == 5} == {0}


def row(concept: int, factor: float, overall: float | None, method: str = "pca", site: str = "a") -> dict[str, Any]:
    return {"method": method, "concept_id": concept, "site": site, "factor": factor, "overall": overall}


ROWS = [
    *(row(0, 1.0, 1.5), row(0, 1.0, 1.5), row(0, 2.0, 0.0), row(0, 2.0, 1.2)),
    *(row(5, 1.0, 0.0), row(5, 1.0, 0.0), row(5, 2.0, 2.0), row(5, 2.0, 2.0)),
    *(row(c, 0.0, 2.0, method, "") for c in (0, 5) for method in ("unsteered", "prompt")),
]


def test_the_own_and_the_shared_choice() -> None:
    picked = pick(ROWS)
    assert picked.own == {("pca", 0): Choice("a", 1.0), ("pca", 5): Choice("a", 2.0)}
    assert picked.shared == {"pca": Choice("a", 2.0)}  # means 0.75 and 1.3


def test_a_shared_choice_counts_each_concept_once() -> None:
    many = [*[row(0, 1.0, 1.0)] * 10, *[row(0, 2.0, 0.0)] * 10, row(5, 1.0, 0.0), row(5, 2.0, 1.5)]
    assert pick(many).shared == {"pca": Choice("a", 2.0)}  # 0.5 and 0.75; over rows it would be 10 to 1.5


def test_ties_and_failures() -> None:
    assert pick([row(0, 2.0, 1.0), row(0, 1.0, 1.0)]).own["pca", 0] == Choice("a", 1.0)
    assert pick([row(0, 1.0, 1.0, site="b"), row(0, 1.0, 1.0, site="a")]).own["pca", 0] == Choice("b", 1.0)
    assert pick([row(0, 1.0, None), row(0, 2.0, 0.0)]).own["pca", 0] == Choice("a", 2.0)
    nothing = pick([row(0, 2.0, None), row(0, 1.0, None, site="b")])
    assert nothing.own["pca", 0] == nothing.shared["pca"] == Choice("a", 2.0)


def test_the_best_of_several_sites() -> None:
    rows = [row(0, 1.0, 0.5), row(0, 2.0, 0.4), row(0, 1.0, 0.1, site="b"), row(0, 2.0, 1.9, site="b")]
    assert pick(rows) == Picked({("pca", 0): Choice("b", 2.0)}, {"pca": Choice("b", 2.0)})
    assert pick(ROWS[::-1]) == pick(ROWS)


def test_the_reporting_cells() -> None:
    made = concepts(4, 2)
    cells = reporting(made, pick(ROWS), halves(made, 0.5))
    assert len(cells) == len({cell.key for cell in cells})
    mine = {(c.concept_id, c.prompt_id, c.factor) for c in cells if c.method == "pca"}
    assert mine == {(0, 2, 1.0), (0, 3, 1.0), (0, 2, 2.0), (0, 3, 2.0), (5, 1, 2.0)}  # own, and shared where it differs
    plain = {(c.method, c.concept_id, c.prompt_id) for c in cells if c.method != "pca"}
    assert plain == {(m, c, p) for m in ("unsteered", "prompt") for c, p in ((0, 2), (0, 3), (5, 1))}
