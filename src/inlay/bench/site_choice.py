"""Which of several Sites a method detects a concept at, chosen on training rows alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from inlay.bench.concept_set import Concept, ConceptSet, Row
from inlay.bench.config import BenchConfig
from inlay.bench.metrics import auroc
from inlay.directions.contrast import Contrast, Text
from inlay.directions.find import find
from inlay.directions.scoring import scores

if TYPE_CHECKING:
    from inlay.model.model import Model

EVERY = 3  # each third training row of a side is kept from the fit and chooses


def best_sites(
    model: Model, concepts: ConceptSet, texts: Mapping[Row, Text], config: BenchConfig
) -> dict[tuple[str, str], str]:
    """By method and concept, the Site with the best AUROC on a third of the training rows, fitted on the others.

    The first Site on ties, and where a side has too few rows to divide.

    Args:
        model: the Model.
        concepts: the set.
        texts: how each row is read.
        config: methods, their settings and Sites.
    """
    folds = {c.name: _Fold(concepts, c) for c in concepts.concepts}
    found = find(
        model,
        [fold.contrast(name, texts) for name, fold in folds.items()],
        config.all_methods,
        config.sites(model.layers),
        tokens=config.tokens,
        seed=config.seed,
        settings=config.settings,
        batch_tokens=config.batch_tokens,
    )
    rows = list(dict.fromkeys(row for fold in folds.values() for side in fold.held for row in side))
    number = {row: n for n, row in enumerate(rows)}
    read = [texts[row] for row in rows]
    along = scores(model, read, found, "max", tokens=config.tokens, batch_tokens=config.batch_tokens)
    best: dict[tuple[str, str], tuple[float, str]] = {}
    for direction, mine in zip(found, along, strict=True):
        yes, no = ([float(mine[number[row]]) for row in side] for side in folds[direction.concept].held)
        reached = auroc(yes, no)
        key = (direction.method, direction.concept)
        if key not in best or reached > best[key][0]:
            best[key] = (reached, str(direction.site))
    return {key: site for key, (_, site) in best.items()}


class _Fold:
    """The training rows of a concept, divided: `fitted` and `held`, positives and negatives each."""

    def __init__(self, concepts: ConceptSet, concept: Concept) -> None:
        sides = [concepts.of(concept, "train", category) for category in ("positive", "negative")]
        small = min(map(len, sides)) < EVERY
        self.held: list[Sequence[Row]] = [side if small else side[::EVERY] for side in sides]
        self.fitted = [side if small else [r for n, r in enumerate(side) if n % EVERY] for side in sides]

    def contrast(self, name: str, texts: Mapping[Row, Text]) -> Contrast:
        return Contrast.of(name, *[[texts[row] for row in side] for side in self.fitted])
