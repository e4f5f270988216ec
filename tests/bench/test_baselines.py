"""Detectors without a model: by hand, and AxBench's numbers on its own data."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import pytest

from inlay.bench import baselines
from inlay.bench.concept_set import Concept, ConceptSet, Row
from inlay.bench.metrics import auroc


def row(output: str, category: str = "positive") -> Row:
    return Row(0, category, "say it", output)


STYLES = [
    ("plain text - with a dash, 3. and 2*3*4", 0),
    ("**bold** start", 1),
    ("__bold__ start", 1),
    ("a list:\n- one\n- two", 1),
    ("1. one\n2) two", 1),
    ("  * **Tea**: hot", 2),
    ("**not\nbold**", 0),
]


@pytest.mark.parametrize(("output", "marks"), STYLES)
def test_marks_of_style(output: str, marks: int) -> None:
    assert baselines.styled(row(output)) == marks
    assert baselines.style([row(output)]) == [-marks]


def test_length_is_of_the_response() -> None:
    assert baselines.length_chars([Row(0, "positive", "a long instruction", "abc"), row("")]) == [3.0, 0.0]


def test_a_bag_of_words_knows_its_words() -> None:
    yes = [row(f"the anchor {word} today") for word in ("fell", "rose", "sank", "hung")]
    no = [row(f"the kettle {word} today", "negative") for word in ("fell", "rose", "sank", "hung")]
    found = baselines.bow((yes, no), [row("an anchor"), row("a kettle"), row("nothing")])
    assert found[0] > 0.9 > found[2] > 0.1 > found[1]


# -- AxBench's data --------------------------------------------------------------------------------------------------


def sides(concepts: ConceptSet, concept: Concept) -> tuple[list[Row], list[Row], list[Row]]:
    yes, no, hard = (concepts.of(concept, "eval", c) for c in ("positive", "negative", "hard negative"))
    return yes, no, hard


def bow_of(concepts: ConceptSet, concept: Concept) -> tuple[list[float], list[float], list[float]]:
    rows = sides(concepts, concept)
    train = (concepts.of(concept, "train", "positive"), concepts.of(concept, "train", "negative"))
    yes, no, hard = (baselines.bow(train, side) if side else [] for side in rows)
    return yes, no, hard


CONCEPT10 = [("prod_2b_l10_v1", (0.895, 0.888, 0.847), 0.700), ("prod_2b_l20_v1", (0.965, 0.962, 0.937), 0.778)]


@pytest.mark.parametrize(("folder", "bow", "length"), CONCEPT10)
def test_axbench_concept10(shared: Path, folder: str, bow: tuple[float, float, float], length: float) -> None:
    concepts = ConceptSet.load(shared / "data" / "axbench" / "concept10" / folder)
    scores = [bow_of(concepts, c) for c in concepts.concepts]
    assert len(scores) == 10
    easy = fmean(auroc(yes, no) for yes, no, _ in scores)
    both = fmean(auroc(yes, [*no, *hard]) for yes, no, hard in scores)
    alone = fmean(auroc(yes, hard) for yes, _, hard in scores if hard)
    assert (easy, both, alone) == pytest.approx(bow, abs=0.002)
    rows = [sides(concepts, c) for c in concepts.concepts]
    lengths = [auroc(baselines.length_chars(yes), baselines.length_chars(no)) for yes, no, _ in rows]
    assert fmean(lengths) == pytest.approx(length, abs=0.002)


def test_axbench_mini(shared: Path) -> None:
    concepts = ConceptSet.load(shared / "data" / "axbench" / "mini")
    assert [c.id for c in concepts.concepts] == [0, 2, 5]
    bow, length = [], []
    for concept in concepts.concepts:
        bow.append(auroc(*bow_of(concepts, concept)[:2]))
        yes, no, _ = sides(concepts, concept)
        length.append(auroc(baselines.length_chars(yes), baselines.length_chars(no)))
    assert bow == pytest.approx([1.0, 0.891, 0.922], abs=0.002)
    assert length == pytest.approx([0.875, 0.719, 0.719], abs=0.002)


def test_style_alone_tells_axbenchs_training_rows(shared: Path) -> None:
    """No bold markdown: .913 and .977 in the specification's count, which has no list marks."""
    for folder, least in (("prod_2b_l10_v1", 0.85), ("prod_2b_l20_v1", 0.95)):
        concepts = ConceptSet.load(shared / "data" / "axbench" / "concept10" / folder)
        found = [line for line in concepts.check() if line.startswith("train rows: style")]
        assert len(found) == 1 and float(found[0].split("mean AUROC ")[1].split(";")[0]) > least
