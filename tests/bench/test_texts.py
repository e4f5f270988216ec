"""Rows as texts, and what is left of one that is too long."""

from __future__ import annotations

import pytest
from tests.model.tiny import WORDS, frozen, words

import inlay
from inlay.bench.concept_set import Row
from inlay.bench.texts import text_of, texts_of
from inlay.directions.contrast import Text

CHAT = frozen("llama", tokenizer=words())  # a context of 64
PLAIN = frozen("llama", tokenizer=words(template=None))
SAID = WORDS[8:]


def text(n: int, start: int = 0) -> str:
    return " ".join(SAID[(start + i) % len(SAID)] for i in range(n))


def ids(model: inlay.Model, given: Text) -> list[int]:
    (row,) = model.encoder.rows([given.prompt], None if given.response is None else [given.response])
    return list(row.ids)


def test_a_row_as_a_chat_and_as_plain_text() -> None:
    row = Row(0, "positive", "say it", "the sea")
    assert text_of(row, chat=True) == Text("say it", "the sea")
    assert text_of(row, chat=False) == Text("say it\n", "the sea")
    assert text_of(Row(0, "positive", "", "the sea"), chat=True) == Text("the sea")


def test_texts_that_fit_stay_as_they_are() -> None:
    rows = [Row(0, "positive", text(20), text(30)), Row(0, "negative", "", text(40))]
    found, cut = texts_of(CHAT, [*rows, *rows])
    assert cut == 0 and found == {row: text_of(row, True) for row in rows}


@pytest.mark.parametrize("model", [CHAT, PLAIN], ids=["chat", "plain"])
def test_a_long_response_loses_its_end(model: inlay.Model) -> None:
    row = Row(0, "positive", text(10), text(200, 5))
    found, cut = texts_of(model, [row])
    (whole,) = model.encoder.without_limit().rows([found[row].prompt], [text(200, 5)])
    kept = ids(model, found[row])
    assert cut == 1 and len(kept) == 64 and kept == list(whole.ids[:64])
    (marked,) = model.encoder.rows([found[row].prompt], [found[row].response or ""])
    (before,) = model.encoder.rows([text_of(row, model.encoder.chat).prompt])
    assert marked.prompt == before.prompt  # the response is still marked as one


def test_a_long_prompt_keeps_both_ends_of_the_template() -> None:
    row = Row(0, "positive", text(200), text(50, 3))
    found, _ = texts_of(CHAT, [row])
    (whole,) = CHAT.encoder.without_limit().rows([row.input])
    kept = ids(CHAT, found[row])
    assert kept[:16] == list(whole.ids[:16]) and kept[16:32] == list(whole.ids[-16:])
    assert kept[0] == WORDS.index("<user>") and kept[31] == WORDS.index("<assistant>")
    assert kept[32:] == [WORDS.index(word) for word in text(50, 3).split()][:32]


def test_a_long_text_without_instruction() -> None:
    row = Row(0, "positive", "", text(200))
    for model in (CHAT, PLAIN):
        found, cut = texts_of(model, [row])
        assert cut == 1 and found[row].response is None and len(ids(model, found[row])) == 32


def test_each_distinct_row_is_counted_once() -> None:
    long = Row(0, "positive", "say it", text(100))
    _, cut = texts_of(CHAT, [long, Row(1, "positive", "say it", text(100)), long, Row(0, "positive", "a", "b")])
    assert cut == 2


def test_a_model_without_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CHAT.encoder, "limit", None)
    row = Row(0, "positive", text(100), text(100))
    assert texts_of(CHAT, [row]) == ({row: Text(text(100), text(100))}, 0)
