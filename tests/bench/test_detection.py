"""Detection on a model whose embeddings say exactly what each word scores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.bench import small
from tests.model.tiny import WIDTH, WORDS, frozen, words

import inlay
from inlay.bench.concept_set import Concept, ConceptSet, Row
from inlay.bench.detection import detect, measures
from inlay.bench.texts import texts_of
from inlay.directions.direction import Direction

SEA = Concept(0, "the sea")
BASELINES = ["bow", "length_chars", "length_tokens", "style"]


def planted(**values: tuple[float, float]) -> inlay.Model:
    """A model whose embeddings' first two numbers are given by word, 0 for other words, -9 for special ones."""
    model = frozen("llama", tokenizer=words())
    table = model.base.get_submodule("model.embed_tokens").weight
    table.data[:, :2] = 0.0
    table.data[:8, :2] = -9.0
    for word, pair in values.items():
        table.data[WORDS.index(word), :2] = torch.tensor(pair)
    return model


def along(number: int, site: str = "resid_pre.0", method: str = "diff_mean", concept: str = "the sea") -> Direction:
    return Direction(torch.eye(WIDTH)[number], site, 1.0, method, concept)


def rows(category: str, *said: str, concept: int = 0) -> tuple[Row, ...]:
    return tuple(Row(concept, category, "the", output) for output in said)


TRAIN = rows("positive", "the sea", "a sea") + rows("negative", "a hill", "the hill")
EVAL = (
    rows("positive", "a sea here", "the boat is it")
    + rows("negative", "a hill", "old hill")
    + rows("hard negative", "the old dog")
)
SET = ConceptSet("planted", (SEA,), TRAIN, EVAL)


def found(model: inlay.Model, concepts: ConceptSet, *directions: Direction) -> dict[str, dict[str, Any]]:
    texts, _ = texts_of(model, [*concepts.train, *concepts.eval])
    return {row["method"]: row for row in detect(model, concepts, directions, texts)}


def test_a_planted_direction_separates_exactly() -> None:
    model = planted(sea=(3, 0), boat=(2, 0), dog=(2.5, 0), hill=(1, 0))
    table = found(model, SET, along(0), along(1, method="random"))
    mine = table["diff_mean"]
    assert (mine["auroc"], mine["auroc_hard"], mine["auroc_all"]) == (1.0, 0.5, 5 / 6)
    assert mine["accuracy"] == (1.0 + 0.0) / 2  # Youden's threshold is the boat's 2, which the dog passes
    assert (mine["precision"], mine["recall"], mine["f1"]) == (2 / 3, 1.0, 0.8)
    assert (mine["n_positive"], mine["n_negative"], mine["n_hard"]) == (2, 2, 1)
    assert (mine["kind"], mine["site"], mine["concept_id"]) == ("method", "resid_pre.0", 0)
    assert table["random"]["auroc"] == 0.5 and table["random"]["kind"] == "control"  # nothing along it


def test_baselines_stand_in_every_table() -> None:
    model = planted()
    for directions in ((along(0),), ()):
        table = found(model, SET, *directions)
        assert [name for name in table if table[name]["kind"] == "baseline"] == BASELINES
        assert all(table[name]["site"] is None for name in BASELINES)
    assert table["length_chars"]["auroc"] == 1.0  # 10 and 14 letters against 6 and 8
    assert table["length_tokens"]["auroc"] == 1.0  # 3 and 4 words against 2 and 2, instructions apart
    assert table["length_tokens"]["auroc_hard"] == 0.75  # 3 and 4 against 3
    assert table["style"]["auroc"] == 0.5
    assert table["bow"]["auroc"] > 0.7 and table["bow"]["n_hard"] == 1


def test_a_site_may_be_given_by_method_and_concept() -> None:
    model = planted(sea=(3.0, 0.0), hill=(0.0, 3.0))
    texts, _ = texts_of(model, [*SET.train, *SET.eval])
    both = (along(1), along(0, site="embed"))
    for site in ("resid_pre.0", "embed"):
        rows = detect(model, SET, both, texts, sites={("diff_mean", "the sea"): site})
        assert [row["site"] for row in rows if row["method"] == "diff_mean"] == [site]
    assert next(row["site"] for row in detect(model, SET, both) if row["method"] == "diff_mean") == "resid_pre.0"


def test_each_concept_has_its_own_directions_and_rows() -> None:
    model = planted(sea=(3, 0), hill=(0, 3))
    hills = Concept(4, "hills")
    both = tuple(Row(4, {"positive": "negative", "negative": "positive"}[r.category], r.input, r.output) for r in TRAIN)
    concepts = ConceptSet("two", (SEA, hills), TRAIN + both, TRAIN + both)
    texts, _ = texts_of(model, concepts.train)
    found = detect(model, concepts, [along(0), along(1, concept="hills")], texts, batch_tokens=16)
    assert [(r["concept_id"], r["auroc"]) for r in found if r["method"] == "diff_mean"] == [(0, 1.0), (4, 1.0)]
    assert sum(row["kind"] == "baseline" for row in found) == 8


def test_concepts_without_evaluation_rows_are_left_out() -> None:
    concepts = ConceptSet("none", (SEA,), TRAIN, rows("positive", "a sea"))
    texts, _ = texts_of(planted(), concepts.train)
    assert detect(planted(), concepts, [along(0)], texts) == []


def test_measures_by_hand() -> None:
    made = measures(([3.0, 2.0, 1.0], [0.0, 1.5], [2.5]))
    assert made == {
        "auroc": pytest.approx(5 / 6),
        "auroc_hard": pytest.approx(1 / 3),
        "auroc_all": pytest.approx(6 / 9),
        "accuracy": pytest.approx((2 / 3 + 0) / 2),  # at 2
        "precision": pytest.approx(3 / 5),  # at 1
        "recall": 1.0,
        "f1": pytest.approx(0.75),
        "n_positive": 3,
        "n_negative": 2,
        "n_hard": 1,
    }
    easy = measures(([3.0, 2.0, 1.0], [0.0, 1.5], []))
    assert easy["auroc_hard"] is None and easy["auroc_all"] == easy["auroc"]
    assert easy["accuracy"] is None


def test_tidepools_concepts_are_found() -> None:
    concepts, model = small.concepts(), small.model()
    texts, _ = texts_of(model, [*concepts.train, *concepts.eval])
    rows = detect(model, concepts, small.directions("resid_post.3"), texts)
    mine = [row["auroc"] for row in rows if row["method"] == "diff_mean"]
    assert len(mine) == 3 and sum(mine) / 3 > 0.7
    assert {row["method"] for row in rows} == {"diff_mean", "random", *BASELINES}
