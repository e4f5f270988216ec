"""The Site of a detector: chosen on training rows that it was not fitted on."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.bench import small

from inlay.bench import site_choice
from inlay.bench.concept_set import CATEGORIES
from inlay.bench.config import BenchConfig
from inlay.bench.metrics import auroc
from inlay.bench.site_choice import EVERY, best_sites
from inlay.bench.texts import texts_of
from inlay.directions import find, scores

SITES = ("resid_post.0", "resid_post.3", "resid_post.5")
CONFIG = BenchConfig.of(methods=("diff_mean", "probe"), site=SITES)


def test_the_best_on_rows_that_were_not_fitted_on() -> None:
    """By hand: fit on two thirds, score the other third, take the best Site, the first on ties."""
    model, concepts = small.model(), small.concepts()
    texts, _ = texts_of(model, concepts.train)
    found = best_sites(model, concepts, texts, CONFIG)
    assert set(found) == {(m, c.name) for m in ("diff_mean", "probe", "random") for c in concepts.concepts}
    for concept in concepts.concepts:
        sides = [concepts.of(concept, "train", category) for category in CATEGORIES[:2]]
        held = [side[::EVERY] for side in sides]
        rows = tuple(row for side in sides for n, row in enumerate(side) if n % EVERY)
        contrast = replace(concepts, train=rows).contrast(concept, texts)
        reached = []
        for site in SITES:
            direction = find(model, [contrast], ["diff_mean"], site)
            yes, no = (scores(model, [texts[row] for row in side], direction)[0].tolist() for side in held)
            reached.append(auroc(yes, no))
        assert found["diff_mean", concept.name] == SITES[reached.index(max(reached))]


def test_evaluation_rows_have_no_say() -> None:
    model, concepts = small.model(), small.concepts()
    texts, _ = texts_of(model, [*concepts.train, *concepts.eval])
    swapped = {"positive": "negative", "negative": "positive"}
    other = tuple(replace(row, category=swapped.get(row.category, row.category)) for row in concepts.eval)
    assert best_sites(model, concepts, texts, CONFIG) == best_sites(model, replace(concepts, eval=other), texts, CONFIG)


def test_a_small_side_is_not_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    concepts = small.concepts()
    concept = concepts.concepts[0]
    few = tuple(row for c in CATEGORIES[:2] for row in concepts.of(concept, "train", c)[: EVERY - 1])
    fold = site_choice._Fold(replace(concepts, train=few), concept)
    assert [len(side) for side in (*fold.held, *fold.fitted)] == [EVERY - 1] * 4
