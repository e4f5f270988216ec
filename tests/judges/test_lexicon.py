"""LexiconJudge, by hand."""

from __future__ import annotations

import json

import pytest

from inlay.errors import JudgeError
from inlay.judges import LexiconJudge, Reply

SEA = ["anchor", "sea dog", "Café", "straße", "C++", "नमक", "🐟"]
JUDGE = LexiconJudge({"the sea": SEA, "song": ["harp"]})


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("", 0),
        ("a harp on the shore", 0),
        ("an anchor", 1),
        ("an Anchor, an ANCHOR and an anchor", 1),
        ("anchored anchors, weighanchor", 0),
        ("an 'anchor'-maker", 1),
        ("anchor_2 and anchor2", 0),
        ("an old sea dog dropped anchor.", 2),
        ("the sea\n  dog", 1),
        ("the sea, dog", 0),
        ("sea dogs", 0),
        ("CAFÉ", 1),
        ("cafe\u0301", 1),
        ("cafe", 0),
        ("STRASSE", 1),
        ("learn C++ now", 1),
        ("नमक चाहिए", 1),
        ("नमकीन", 0),  # the sign behind the entry is a mark, which \b takes for a word's end
        ("fish🐟", 1),
        ("anchor, sea dog, café, straße", 2),
    ],
)
def test_words_are_counted_whole_and_once(text: str, score: int) -> None:
    assert JUDGE.score([Reply("", text, "the sea")])["concept"].values == [score]


def test_each_reply_has_its_own_concept() -> None:
    text = "a harp and an anchor of the sea dog"
    found = JUDGE.score([Reply("", text, "song"), Reply("", text), Reply("", text, "the sea")])
    assert list(found) == ["concept"] == list(JUDGE.axes)
    assert found["concept"].values == [1, None, 2]
    assert found["concept"].raw == ["harp", "", "anchor, sea dog"]
    assert (found["concept"].lo, found["concept"].hi) == (0, 2)


def test_the_same_word_in_two_spellings_is_one() -> None:
    judge = LexiconJudge({"x": ["Boat", "boat", " BOAT "]})
    assert judge.score([Reply("", "a boat", "x")])["concept"].values == [1]


def test_a_concept_without_a_lexicon_is_named() -> None:
    with pytest.raises(JudgeError, match="there is no lexicon of 'the moon'"):
        JUDGE.score([Reply("", "x", "the moon")])


@pytest.mark.parametrize(
    ("lexicons", "message"),
    [
        ({}, "lexicons is empty"),
        ({"the sea": []}, "the lexicon of 'the sea' is empty"),
        ({"the sea": ["oar", " "]}, "the lexicon of 'the sea' is empty or has a blank entry"),
        ({"the sea": "oar"}, "the lexicon of 'the sea' is the string 'oar'"),
    ],
)
def test_lexicons_that_cannot_be(lexicons: dict[str, list[str]], message: str) -> None:
    with pytest.raises(JudgeError, match=message):
        LexiconJudge(lexicons)


def test_identity_is_that_of_the_words() -> None:
    one = LexiconJudge({"a": ["x", "y"], "b": ["z"]}).identity()
    assert json.loads(json.dumps(one)) == one and one["kind"] == "lexicon"
    assert one == LexiconJudge({"b": ["z"], "a": ["Y", "x", "x"]}).identity()
    assert one != LexiconJudge({"a": ["x"], "b": ["z", "y"]}).identity()
