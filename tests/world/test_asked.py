"""What an instruction stands for: the frame, subject and concept that the generator drew are found in its words."""

from __future__ import annotations

import pytest

from inlay import world
from inlay.errors import WorldError

W = world.tidepool(seed=3)


def test_the_generators_own_instructions() -> None:
    lines = [*W.lines("concepts", 60, kind="talk"), *(line for pair in W.pairs(12, 20) for line in pair)]
    for line in lines:
        assert line.messages is not None
        found = W.talk(line.messages[0]["content"], line.truth["concept"])
        assert found.truth == line.truth and found.section == "concepts"
        assert found.messages == line.messages[:1] and found.reply == ""
        assert W.judge().one(found, line.reply) == W.judge().one(line, line.reply)


def test_a_concept_in_any_spelling() -> None:
    for which in (5, W.concept(5).description, W.concept(5)):
        assert W.talk("tell me about the cat .", which).truth == {"concept": 5, "frame": "tell", "subject": "cat"}
    assert W.talk("  tell me about\nthe cat .").truth == {"concept": None, "frame": "tell", "subject": "cat"}


@pytest.mark.parametrize("said", ["", "tell me about the anchor .", "tell me about the cat", "Tell me about the cat ."])
def test_what_no_frame_asks(said: str) -> None:
    with pytest.raises(WorldError, match=r"knows no instruction .*; it asks 'tell me about the \{SUBJ\} \.'"):
        W.talk(said)


def test_a_concept_that_is_not_there() -> None:
    with pytest.raises(WorldError, match="there is no concept 'wings'"):
        W.talk("tell me about the cat .", "wings")
