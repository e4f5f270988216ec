"""Detection: how well each direction, and each baseline, tells texts with a concept from texts without."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from inlay.bench import baselines
from inlay.bench.concept_set import CATEGORIES, Concept, ConceptSet, Row
from inlay.bench.metrics import Numbers, auroc, best_f1, macro_accuracy, threshold_youden
from inlay.bench.texts import texts_of
from inlay.directions.contrast import Text
from inlay.directions.direction import Direction
from inlay.directions.methods import METHODS
from inlay.directions.scoring import scores

if TYPE_CHECKING:
    from inlay.model.model import Model

Sides = tuple[Numbers, Numbers, Numbers]  # scores of positives, negatives, hard negatives
Sites = Mapping[tuple[str, str], str]  # by method and concept


def detect(
    model: Model,
    concepts: ConceptSet,
    directions: Sequence[Direction],
    texts: Mapping[Row, Text] | None = None,
    *,
    sites: Sites | None = None,
    tokens: str = "all",
    batch_tokens: int = 8192,
) -> list[dict[str, Any]]:
    """One row a detector and concept: AUROC against negatives, hard negatives and both, thresholds' accuracy and F1.

    A text's score is the greatest projection of its tokens (AxBench, section 3.2). Every distinct row is read once for
    all directions.

    Args:
        model: the Model.
        concepts: the set; concepts without evaluation positives or negatives are left out.
        directions: any number, of the set's concepts by name.
        texts: how each row is read; by default as `texts_of` has it.
        sites: of several Sites, the one that each method and concept uses; see `best_sites`. By default the first.
        tokens: which tokens are scored.
        batch_tokens: the most padded tokens in one forward.
    """
    texts = texts_of(model, [*concepts.train, *concepts.eval])[0] if texts is None else texts
    by_name = {c.name: c for c in concepts.concepts if all(concepts.of(c, "eval", k) for k in CATEGORIES[:2])}
    used: dict[tuple[str, str], Direction] = {}
    for direction in directions:
        key = (direction.method, direction.concept)
        if direction.concept in by_name and (sites is None or sites[key] == str(direction.site)):
            used.setdefault(key, direction)
    rows = dict.fromkeys(row for c in by_name.values() for side in _rows_of(concepts, c) for row in side)
    number = {row: n for n, row in enumerate(rows)}
    found = []
    if used:
        read = [texts[row] for row in rows]
        along = scores(model, read, list(used.values()), "max", tokens=tokens, batch_tokens=batch_tokens)
        for (method, name), direction, mine in zip(used, used.values(), along, strict=True):
            each = [mine[[number[row] for row in side]].tolist() for side in _rows_of(concepts, by_name[name])]
            about = {"method": method, "kind": METHODS[method].kind, "site": str(direction.site)}
            found.append({**about, "concept_id": by_name[name].id, **measures((each[0], each[1], each[2]))})
    for concept in by_name.values():
        for method, of in _baselines(model, concepts, concept, texts).items():
            found.append({"method": method, "kind": "baseline", "site": None, "concept_id": concept.id, **measures(of)})
    return found


def _rows_of(concepts: ConceptSet, concept: Concept) -> list[list[Row]]:
    return [concepts.of(concept, "eval", category) for category in CATEGORIES]


def _baselines(model: Model, concepts: ConceptSet, concept: Concept, texts: Mapping[Row, Text]) -> dict[str, Sides]:
    rows = _rows_of(concepts, concept)
    train = (concepts.of(concept, "train", "positive"), concepts.of(concept, "train", "negative"))

    def tokens(side: Sequence[Row]) -> list[float]:
        """Of the response; of free text, all."""
        given = [texts[row] for row in side]
        if not given:
            return []
        encoded = model.encoder.rows([text.prompt for text in given], [text.response or "" for text in given])
        return [float(len(row.ids) - row.prompt or len(row.ids)) for row in encoded]

    words = baselines.bow(train, [row for side in rows for row in side])
    first, second = len(rows[0]), len(rows[0]) + len(rows[1])
    return {
        "bow": (words[:first], words[first:second], words[second:]),
        "length_chars": _each(baselines.length_chars, rows),
        "length_tokens": _each(tokens, rows),
        "style": _each(baselines.style, rows),
    }


def _each(score: Callable[[Sequence[Row]], list[float]], rows: Sequence[Sequence[Row]]) -> Sides:
    yes, no, hard = map(score, rows)
    return yes, no, hard


def measures(sides: Sides) -> dict[str, float | int | None]:
    """The numbers of one detector on one concept.

    Args:
        sides: scores of positives, negatives and hard negatives; the last may be none.

    Returns:
        `auroc`, `auroc_hard` (`None` without hard negatives), `auroc_all`; `accuracy`: macro, over positives and hard
        negatives, at the Youden threshold of positives and negatives (`None` without hard negatives); `precision`,
        `recall`, `f1` at the best F1 over all; counts.
    """
    yes, no, hard = sides
    every = [*no, *hard]
    best = best_f1(yes, every)
    return {
        "auroc": auroc(yes, no),
        "auroc_hard": auroc(yes, hard) if hard else None,
        "auroc_all": auroc(yes, every),
        "accuracy": macro_accuracy(yes, hard, threshold_youden(yes, no)),
        "precision": best.precision,
        "recall": best.recall,
        "f1": best.f1,
        "n_positive": len(yes),
        "n_negative": len(no),
        "n_hard": len(hard),
    }
