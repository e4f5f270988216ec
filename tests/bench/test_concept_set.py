"""A concept set: whose rows are whose, what a prompt asks, and what is doubtful about it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from inlay import world
from inlay.bench.concept_set import Concept, ConceptSet, Row
from inlay.directions.contrast import Text
from inlay.errors import BenchError

SEA, TEA = Concept(0, "the sea"), Concept(3, "tea", "math", ask="Speak of tea.")


def rows(concept: int, category: str, *said: str, genre: str = "text") -> list[Row]:
    return [Row(concept, category, "say it", output, genre) for output in said]


TRAIN = (
    *rows(0, "positive", "waves", "tides"),
    *rows(0, "negative", "hills"),
    *rows(3, "positive", "a cup", genre="math"),
    *rows(-1, "negative", "a shared text"),
    *rows(-1, "negative", "one", "two", genre="math"),
)
EVAL = (*rows(0, "positive", "foam"), *rows(0, "negative", "rock"), *rows(0, "hard negative", "wave goodbye"))
SET = ConceptSet("mine", (SEA, TEA), TRAIN, EVAL, {0: ["tell me"], 3: ["go on"]})


def test_rows_of_a_concept() -> None:
    assert [r.output for r in SET.of(SEA, "train", "positive")] == ["waves", "tides"]
    assert [r.output for r in SET.of(SEA, "train", "negative")] == ["hills"]  # its own, where it has some
    assert [r.output for r in SET.of(TEA, "train", "negative")] == ["one", "two"]  # its genre's
    assert [r.output for r in SET.of(SEA, "eval", "hard negative")] == ["wave goodbye"]
    assert SET.of(TEA, "eval", "positive") == SET.of(TEA, "eval", "negative") == []


def test_the_contrast_of_a_concept() -> None:
    texts = {row: Text(row.input, row.output) for row in TRAIN}
    found = SET.contrast(TEA, texts)
    assert found.name == "tea" and [t.response for t in found.positives] == ["a cup"]
    assert [t.response for t in found.negatives] == ["one", "two"]


def test_what_a_prompt_asks() -> None:
    ask = 'Your answer must include content related to "the sea", even if it does not make sense.'
    assert SET.asked(SEA, "Why?") == f"{ask}\n\nQuestion: Why?"
    assert SET.asked(TEA, "Why?") == "Speak of tea.\n\nQuestion: Why?"
    tidepool = replace(SET, world=world.tidepool(), ask="use {concept} .")
    assert tidepool.asked(SEA, "tell me about the cat .") == "tell me about the cat . use the sea ."


def test_the_first_concepts() -> None:
    one = SET.first(1)
    assert one.concepts == (SEA,) and {r.concept_id for r in one.train} == {0, -1} and one.eval == EVAL
    assert SET.first(9) == SET
    with pytest.raises(BenchError, match="limit=0: a run needs at least one concept"):
        SET.first(0)


def test_the_digest_tells_every_change() -> None:
    changed = [
        replace(SET, train=TRAIN[1:]),
        replace(SET, eval=(*EVAL[:2], replace(EVAL[2], category="negative"))),
        replace(SET, prompts={0: ["tell me"], 3: ["go on ."]}),
        replace(SET, ask="{concept}!"),
        replace(SET, concepts=(SEA, replace(TEA, lexicon=("cup",)))),
    ]
    assert len({SET.digest, *(one.digest for one in changed)}) == 6
    assert replace(SET, name="another").digest == SET.digest


# -- check -----------------------------------------------------------------------------------------------------------


def test_a_set_without_rows_is_refused() -> None:
    with pytest.raises(BenchError, match="mine has no concepts"):
        ConceptSet("mine", (), TRAIN, EVAL).check()
    for category in ("positive", "negative"):
        left = tuple(r for r in TRAIN if r.concept_id != 0 or r.category != category)
        left = tuple(r for r in left if r.concept_id != -1 or r.genre != "text")
        with pytest.raises(BenchError, match=rf"concept 0 \('the sea'\) has no training rows of category '{category}'"):
            replace(SET, train=left).check()


def test_concepts_of_one_name_or_id_are_refused() -> None:
    with pytest.raises(BenchError, match="two concepts have the name 'the sea'; give each its own"):
        replace(SET, concepts=(SEA, replace(TEA, name="the sea"))).check()
    with pytest.raises(BenchError, match="two concepts have the id 0; give each its own"):
        replace(SET, concepts=(SEA, replace(SEA, name="the ocean"))).check()


def test_length_and_style_that_give_concepts_away() -> None:
    def made(yes: str, no: str) -> list[str]:
        both = (*rows(0, "positive", *[yes + "x" * n for n in range(4)]), *rows(0, "negative", *[no] * 4))
        return ConceptSet("mine", (SEA,), both, both).check()

    found = made("a long response ", "short")
    assert [line.split(" alone")[0] for line in found] == ["train rows: length", "eval rows: length"]
    assert "mean AUROC 1.000" in found[0]
    found = made("plain t", "**bold**")
    assert "train rows: style alone tells positives from negatives, mean AUROC 1.000" in "\n".join(found)
    both = (*rows(0, "positive", "aa", "b"), *rows(0, "negative", "cc", "d"))
    assert ConceptSet("mine", (SEA,), both, both).check() == []


def test_concepts_without_evaluation_rows_are_named() -> None:
    assert SET.check()[-1] == "1 concept(s) have no evaluation positives, so no detection: [3]"
