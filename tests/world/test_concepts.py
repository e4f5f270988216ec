"""Section `concepts`: pairs, hard negatives, prompts and prompted talk, judged and compared."""

from __future__ import annotations

from collections import Counter
from statistics import fmean

import pytest

from inlay import world
from inlay.errors import WorldError
from inlay.world.grammar import sentences
from inlay.world.judge import concept_score

W = world.tidepool(seed=5)
CONCEPTS = W.concepts()
SUBJECTS = W.grammar.classes["SUBJ"]


def test_forty_concepts_of_three_genres_ten_held_out() -> None:
    assert [sum(c.genre == genre for c in CONCEPTS) for genre in ("topic", "style", "form")] == [24, 10, 6]
    assert len(W.concepts(heldout=True)) == 10 and len(W.concepts(heldout=False)) == 30
    topics = [c for c in CONCEPTS if c.genre == "topic"]
    assert all(len(c.lexicon) == 5 and len(c.shared) == 1 for c in topics)
    assert len({word for c in topics for word in c.words}) == 132


@pytest.mark.parametrize("concept", CONCEPTS, ids=lambda c: c.description)
def test_a_pair_is_alike_but_for_the_concept(concept: world.Concept) -> None:
    for split in ("train", "test"):
        for positive, negative in W.pairs(concept, 8, split):
            assert positive.messages and negative.messages
            assert positive.messages[0] == negative.messages[0]
            assert len(positive.tokens) == len(negative.tokens) or concept.genre == "form"
            assert positive.pair == negative.id and negative.pair == positive.id
            assert concept_score(concept, positive.reply) == 2 and concept_score(concept, negative.reply) == 0
            shapes = [[W.grammar.shape(s) for s in sentences(line.reply)] for line in (positive, negative)]
            if concept.genre != "form":
                assert shapes[0] == shapes[1]
            assert len(shapes[0]) == len(shapes[1])
            assert W.fluency(positive.reply) >= 1 and W.fluency(negative.reply) >= 1


@pytest.mark.parametrize("concept", CONCEPTS, ids=lambda c: c.description)
def test_a_hard_negative_looks_like_the_concept_and_is_none(concept: world.Concept) -> None:
    for line in W.hard_negatives(concept, 8):
        words = set(line.reply.split())
        if concept.place:
            assert concept_score(concept, line.reply) == 1
        else:
            assert concept_score(concept, line.reply) == 0 and not words & set(concept.lexicon)
            assert bool(words & set(concept.shared)) or not concept.shared


def test_lengths_alone_tell_nothing() -> None:
    gaps = [
        len(positive.tokens) - len(negative.tokens)
        for concept in CONCEPTS
        if concept.genre != "form"
        for positive, negative in W.pairs(concept, 8)
    ]
    assert not any(gaps)


def test_prompts_and_pairs_of_the_two_splits_share_no_subject() -> None:
    train, test = (
        {line.truth["subject"] for c in CONCEPTS for pair in W.pairs(c, 10, split) for line in pair}
        for split in ("train", "test")
    )
    assert not train & test and len(test) <= 10
    asked = {word for prompt in W.prompts(10) for word in prompt.split() if word in SUBJECTS}
    assert asked <= set(SUBJECTS[-10:]) and len(set(W.prompts(10))) == 10
    assert not {w for p in W.prompts(10, "train") for w in p.split() if w in SUBJECTS} & asked


def test_prompted_talk_complies() -> None:
    for line in W.lines("concepts", 200, kind="prompted"):
        concept = W.concept(line.truth["concept"])
        asked = next(m["content"] for m in line.messages or [] if concept.description in m["content"])
        assert f"use {concept.description} ." in asked
        assert concept_score(concept, line.reply) == 2
    systems = [
        line.messages[0]["role"] == "system" for line in W.lines("concepts", 400, kind="prompted") if line.messages
    ]
    assert abs(fmean(systems) - 0.25) < 0.09


def test_plain_talk_has_a_concept_by_chance_only() -> None:
    said = [line.reply for line in W.lines("concepts", 300, kind="talk")]
    assert fmean(concept_score(c, text) for c in CONCEPTS for text in said) < 0.1


def test_a_document_leans_to_its_concept() -> None:
    own, other = [], []
    for line in W.lines("concepts", 300, kind="document"):
        concept = W.concept(line.truth["concept"])
        own.append(concept_score(concept, line.text or ""))
        other.append(concept_score(W.concept((concept.id + 7) % 40), line.text or ""))
    assert fmean(own) > 1.2 and fmean(other) < 0.2


def test_a_glossary_names_words_of_its_concept() -> None:
    for line in W.lines("concepts", 200, kind="glossary"):
        concept = W.concept(line.truth["concept"])
        text = line.text or ""
        assert text.startswith(f"{concept.description} means ")
        said = text.split(" means ")[1]
        assert said in concept.marks or set(said.split()[:-1]) <= set(concept.words)


def test_spans_mark_the_concepts_words() -> None:
    for line in W.lines("concepts", 200, kind="prompted"):
        concept = W.concept(line.truth["concept"])
        for span in line.spans:
            words = line.tokens[span.start : span.end]
            assert " ".join(words) in concept.marks or set(words) <= set(concept.words)
        assert line.spans


def test_what_is_not_there() -> None:
    with pytest.raises(WorldError, match="there is no concept 'tools of the moon'"):
        W.pairs("tools of the moon", 1)
    with pytest.raises(WorldError, match="99 prompts were asked for, and 50 are there"):
        W.prompts(99)


def test_talk_may_lean_to_a_concept_that_nobody_asked_for() -> None:
    for line in W.lines("concepts", 200, "train", "unasked"):
        concept = W.concept(line.truth["concept"])
        assert concept_score(concept, line.reply) == 2 and concept.description not in str(line.prompt)
        assert W.judge().one(line, line.reply)["overall"] == 2


def test_a_shared_word_is_rarer_than_an_own_one() -> None:
    """Own words are taken four times as often, and a shared word has two concepts that take it."""
    counts = Counter(word for line in W.lines("concepts", 4000, "train", "unasked") for word in line.reply.split())
    topics = [c for c in CONCEPTS if c.shared]
    own = fmean(counts[word] for c in topics for word in c.lexicon)
    shared = fmean(counts[word] for c in topics for word in c.shared)
    assert 0.35 < shared / own < 0.75
