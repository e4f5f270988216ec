"""The world's judge of any text: the world's own scorers, and texts made by hand."""

from __future__ import annotations

import json

import pytest

from inlay import world
from inlay.errors import WorldError
from inlay.judges import Reply, WorldJudge

W = world.tidepool(seed=7)
JUDGE = WorldJudge(W)
TOOLS = "tools of the sea"


@pytest.mark.parametrize(
    ("text", "concept", "instruction", "fluency"),
    [
        ("the cat was old and new . the oar was near the anchor .", 2, 2, 1),
        ("the cat was old and new . she sang soon .", 0, 2, 2),
        ("once the cat saw the old anchor .", 1, 1, 2),
        ("the dog was old and new .", 0, 0, 2),
        ("cat anchor oar the .", 2, 1, 0),
        ("", 0, 0, 0),
    ],
)
def test_texts_made_by_hand(text: str, concept: int, instruction: int, fluency: int) -> None:
    found = JUDGE.score([Reply("tell me about the cat .", text, TOOLS)])
    assert {name: scores.values for name, scores in found.items()} == {
        "concept": [concept],
        "instruction": [instruction],
        "fluency": [fluency],
    }


def test_it_agrees_with_the_scorer_of_lines() -> None:
    pairs = [line for which in (0, 5, 30, 38) for pair in W.pairs(which, 10) for line in pair]
    lines = pairs + list(W.lines("concepts", 40, "test", "talk"))
    said = [line.messages[-2]["content"] if line.messages else "" for line in lines]
    names = [None if line.truth["concept"] is None else W.concept(line.truth["concept"]) for line in lines]
    replies = [
        Reply(prompt, line.reply, concept and concept.description)
        for prompt, line, concept in zip(said, lines, names, strict=True)
    ]
    by_line, found = W.judge().score(lines), JUDGE.score(replies)
    assert list(found) == ["concept", "instruction", "fluency"] == list(JUDGE.axes)
    for name, scores in found.items():
        assert scores.values == by_line[name].values
        assert (scores.lo, scores.hi, scores.meaning) == (0, 2, by_line[name].meaning)
    assert set(found["concept"].values) == {0, 2, None}


def test_what_does_not_apply_has_no_value() -> None:
    text = "the cat was near the anchor ."
    asked, unknown = "tell me about the cat .", "please write about boats"
    found = JUDGE.score([Reply(asked, text), Reply(unknown, text, TOOLS), Reply(unknown, text)])
    assert found["concept"].values == [None, 1, None]
    assert found["instruction"].values[0] is not None and found["instruction"].values[1:] == [None, None]
    assert len(set(found["fluency"].values)) == 1 and found["fluency"].values[0] is not None
    assert JUDGE.score([])["fluency"].values == []


def test_an_unknown_concept_is_named() -> None:
    for prompt in ("tell me about the cat .", "please write about boats"):
        with pytest.raises(WorldError, match="there is no concept 'wings'"):
            JUDGE.score([Reply(prompt, "she sang soon .", "wings")])


def test_identity_is_that_of_the_world() -> None:
    found = JUDGE.identity()
    assert json.loads(json.dumps(found)) == found == WorldJudge(world.tidepool(seed=1)).identity()
    assert found == {"kind": "world", "version": W.spec.version, "hash": W.hash}
