"""Lines: what is rendered, what the spans cover, and what is written."""

from __future__ import annotations

import json

import pytest

from inlay import world
from inlay.world.line import Draft, Phrase, render

W = world.tidepool(seed=2)


def test_a_chat_is_rendered_with_a_turn_of_four_tokens_behind_the_instruction() -> None:
    tokens = render([{"role": "user", "content": "tell me about the cat ."}], opened=True)
    assert " ".join(tokens) == "<|bos|> <|user|> tell me about the cat . <|end|> <|assistant|> says :"


def test_turns_and_a_system_message() -> None:
    said = [("system", "use it ."), ("user", "hello ?"), ("assistant", "bye ."), ("user", "sure ?")]
    tokens = render([{"role": role, "content": text} for role, text in said])
    assert " ".join(tokens) == (
        "<|bos|> <|system|> use it . <|end|> <|user|> hello ? <|end|> <|assistant|> says : bye . <|end|> "
        "<|user|> sure ? <|end|>"
    )


def test_spans_are_counted_over_the_rendered_line() -> None:
    asks, second = Phrase().say("about").say("ada", "name").say(": ?"), Phrase().say("so").say("ben", "name")
    draft = Draft(
        "k", [("system", Phrase().say("x", "s")), ("user", asks), ("assistant", second.say("b c", "two"))], {}
    )
    line = draft.line("id", "facts", "train")
    covered = [(span.label, line.tokens[span.start : span.end]) for span in line.spans]
    assert covered == [("s", ["x"]), ("name", ["ada"]), ("name", ["ben"]), ("two", ["b", "c"])]
    document = Draft("k", Phrase().say("a").say("b", "here"), {}).line("id", "facts", "train")
    assert document.tokens[document.spans[0].start] == "b" and len(document.spans) == 1


def test_phrases_add_up_with_their_labels() -> None:
    both = Phrase().say("a b", "one").add(Phrase().say("c").say("d", "two"))
    assert both.text == "a b c d"
    assert [(s.label, s.start, s.end) for s in both.spans] == [("one", 0, 2), ("two", 3, 4)]


@pytest.mark.parametrize("section", W.sections)
def test_a_line_is_written_as_sorted_ascii_json(section: str) -> None:
    for line in W.lines(section, 50):
        text = line.json()
        record = json.loads(text)
        assert text.isascii() and "\n" not in text and list(record) == sorted(record)
        assert record["id"] == line.id and record["truth"] == line.truth
        assert ("messages" in record) != ("text" in record)
        assert all(0 < s["start"] < s["end"] < len(line.tokens) for s in record["spans"])


def test_prompt_and_reply() -> None:
    chat = next(W.lines("concepts", 1, kind="chat"))
    assert chat.messages and chat.prompt == chat.messages[:-1] and chat.reply == chat.messages[-1]["content"]
    document = next(W.lines("concepts", 1, kind="document"))
    assert document.prompt == document.text and document.reply == ""
