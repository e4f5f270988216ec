"""Grammar: one class a word, sentences recognised by class, and exact probabilities."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest

from inlay.errors import WorldError
from inlay.world.draw import Draw
from inlay.world.grammar import Grammar, Leaning, Template, sentences

CLASSES = {"A": ("old", "new"), "N": ("cup", "hat", "box"), "V": ("sat", "ran")}
TEMPLATES = [Template.parse("the {A} {N} {V} .", 1.0), Template.parse("{N} {V} .", 3.0)]
SEA = Leaning("N", ("oar", "oar", "sail"), 0.6)


def tiny(stray: float = 0.2) -> Grammar:
    return Grammar(CLASSES, {"N": ("oar", "sail")}, TEMPLATES, stray=stray)


def every_sentence() -> list[list[str]]:
    nouns, adjectives, verbs = (*CLASSES["N"], "oar", "sail"), CLASSES["A"], CLASSES["V"]
    long = [["the", a, n, v, "."] for a, n, v in itertools.product(adjectives, nouns, verbs)]
    return long + [[n, v, "."] for n, v in itertools.product(nouns, verbs)]


@pytest.mark.parametrize("leaning", [None, SEA])
def test_the_probabilities_of_all_sentences_add_up_to_one(leaning: Leaning | None) -> None:
    grammar = tiny()
    total = sum(math.exp(grammar.logprob(words, leaning)) for words in every_sentence())
    assert total == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("leaning", [None, SEA])
def test_sentences_come_as_often_as_their_probability_says(leaning: Leaning | None) -> None:
    grammar, draw, n = tiny(), Draw("often"), 40_000
    counts = Counter(" ".join(grammar.draw(draw, grammar.template(draw), leaning)) for _ in range(n))
    for words in every_sentence():
        p = math.exp(grammar.logprob(words, leaning))
        assert abs(counts[" ".join(words)] - n * p) <= 5 * math.sqrt(n * p * (1 - p)) + 1, words


def test_a_probability_by_hand() -> None:
    """P(template) 1/4, P(old) 1/2, P(cup) = .8 / 3, P(sat) 1/2."""
    assert tiny().logprob(["the", "old", "cup", "sat", "."]) == pytest.approx(math.log(0.25 * 0.5 * (0.8 / 3) * 0.5))
    leant = 0.6 / 3 + 0.4 * 0.2 / 2  # one of three places in the lexicon, or a stray one
    assert tiny().logprob(["sail", "ran", "."], SEA) == pytest.approx(math.log(0.75 * leant * 0.5))


def test_what_the_grammar_cannot_say_has_no_probability() -> None:
    for text in ("the cup old sat .", "cup sat", "cup flew .", ""):
        assert tiny().logprob(text.split()) == -math.inf


def test_sentences_are_known_by_their_classes() -> None:
    grammar = tiny()
    assert grammar.is_sentence(["the", "new", "sail", "ran", "."])
    for text in ("the new ran .", "new the sail ran .", "sail ran", "sail ran . .", "sail"):
        assert not grammar.is_sentence(text.split())
    assert grammar.is_sentence(["sail", "ran"], cut=True) and grammar.is_sentence(["the", "old"], cut=True)
    assert not grammar.is_sentence(["old", "sail"], cut=True)


def test_further_sentences_can_be_learnt() -> None:
    grammar = tiny()
    assert not grammar.is_sentence(["a", "cup", "!"]) and not grammar.is_sentence(["a"], cut=True)
    grammar.learn([Template.parse("a {N} !")])
    assert grammar.is_sentence(["a", "hat", "!"]) and grammar.is_sentence(["a"], cut=True)


def test_a_word_has_one_class() -> None:
    with pytest.raises(WorldError, match="'cup' is in the classes A and N"):
        Grammar({"A": ("cup",), "N": ("cup",)}, {}, [])
    with pytest.raises(WorldError, match="'cup' is a plain word of class N and in a concept's lexicon"):
        Grammar({"N": ("cup", "hat")}, {"N": ("cup",)}, [])


def test_templates_that_look_alike_are_refused() -> None:
    with pytest.raises(WorldError, match="same classes in the same order"):
        Grammar(CLASSES, {}, [Template.parse("{N} {V} ."), Template.parse("cup {V} .")])


def test_an_unknown_slot_is_named() -> None:
    with pytest.raises(WorldError, match=r"template 'the \{X\} \.': there is no word class 'X'"):
        Grammar(CLASSES, {}, [Template.parse("the {X} .")])


def test_texts_are_cut_at_their_ends() -> None:
    assert sentences("a b . c ? d ! e") == [["a", "b", "."], ["c", "?"], ["d", "!"], ["e"]]
    assert sentences("") == []


def twice(words: tuple[str, ...] = ("cup", "hat")) -> Grammar:
    """Two slots of one class in a sentence, and in another none."""
    sentences = [Template.parse("the {N} and the {N} ."), Template.parse("{N} .")]
    return Grammar({"N": words}, {"N": ("oar", "sail")}, sentences, stray=0.2)


@pytest.mark.parametrize("leaning", [None, SEA])
def test_a_sentence_says_no_word_twice_and_its_probability_knows(leaning: Leaning | None) -> None:
    grammar, draw = twice(), Draw("twice")
    every = [["the", a, "and", "the", b, "."] for a in ALL for b in ALL] + [[a, "."] for a in ALL]
    assert sum(math.exp(grammar.logprob(words, leaning)) for words in every) == pytest.approx(1.0, abs=1e-12)
    assert grammar.logprob(["the", "cup", "and", "the", "cup", "."], leaning) == -math.inf
    said = [grammar.draw(draw, grammar.sentences[0], leaning) for _ in range(2000)]
    assert all(words[1] != words[4] for words in said)
    pair = sum(words[1] == "cup" and words[4] == "sail" for words in said) / 2000
    odds = math.exp(grammar.logprob(["the", "cup", "and", "the", "sail", "."], leaning))
    assert pair == pytest.approx(2 * odds, abs=0.03)  # the first template is one of two


ALL = ("cup", "hat", "oar", "sail")


def test_a_class_has_as_many_plain_words_as_a_sentence_has_slots_of_it() -> None:
    with pytest.raises(WorldError, match="has 2 slots of class N, which has 1 plain words"):
        twice(("cup",))
    grammar = twice()
    with pytest.raises(WorldError, match="has 3 slots of class N, which has 2 plain words"):
        grammar.learn([Template.parse("{N} {N} {N} !")])
