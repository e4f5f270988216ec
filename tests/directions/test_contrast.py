"""Texts in every form, and concepts that lack a side."""

from __future__ import annotations

from typing import Any

import pytest

from inlay.directions import Contrast, Text
from inlay.errors import DirectionError

CHAT = [{"role": "user", "content": "the sea"}, {"role": "assistant", "content": "blue"}]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("the sea", Text("the sea")),
        (CHAT, Text(CHAT)),
        (tuple(CHAT), Text(tuple(CHAT))),
        (("the sea", "blue"), Text("the sea", "blue")),
        ((CHAT[:1], "blue"), Text(CHAT[:1], "blue")),
        (Text("the sea", ""), Text("the sea", "")),
    ],
)
def test_forms_of_a_text(given: Any, wanted: Text) -> None:
    assert Text.of(given) == wanted


@pytest.mark.parametrize("given", [None, 5, [], ("a", "b", "c"), ("a", None), ["a", "b"], {"role": "user"}, b"sea"])
def test_what_is_no_text(given: Any) -> None:
    with pytest.raises(DirectionError, match=r"is no text: give a string, a chat, or a pair \(prompt, response\)"):
        Text.of(given)


def test_a_long_wrong_text_is_cut_short_in_the_message() -> None:
    with pytest.raises(DirectionError) as caught:
        Text.of([5] * 1000)
    assert len(str(caught.value)) < 200


def test_a_contrast_of_any_forms() -> None:
    made = Contrast.of("sea", ["a", ("b", "c")], (CHAT,))
    assert made == Contrast("sea", (Text("a"), Text("b", "c")), (Text(CHAT),))


@pytest.mark.parametrize(("positives", "negatives", "side"), [([], ["a"], "positives"), (["a"], [], "negatives")])
def test_an_empty_side(positives: list[str], negatives: list[str], side: str) -> None:
    with pytest.raises(DirectionError, match=f"sea: there are no {side}; give at least one text"):
        Contrast.of("sea", positives, negatives)
    with pytest.raises(DirectionError, match=f"sea: there are no {side}"):
        Contrast("sea", tuple(map(Text, positives)), tuple(map(Text, negatives)))


def test_one_string_is_no_list_of_texts() -> None:
    with pytest.raises(DirectionError, match="sea: the negatives are 'a dog'; give a list of texts"):
        Contrast.of("sea", ["a"], "a dog")


def test_a_chat_is_no_list_of_texts() -> None:
    with pytest.raises(DirectionError, match="is no text"):
        Contrast.of("sea", CHAT, ["a"])
