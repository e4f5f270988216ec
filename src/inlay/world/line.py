"""A line of a world: text with its ground truth, down to the token."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

BOS, DOC, END, USER, ASSISTANT, SYSTEM = "<|bos|>", "<|doc|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"
PAD, MASK, UNKNOWN = "<|pad|>", "<|mask|>", "<|unk|>"
SPECIALS = (PAD, BOS, END, USER, ASSISTANT, DOC, MASK, UNKNOWN, SYSTEM)
OPENING = (ASSISTANT, "says", ":")


@dataclass(frozen=True)
class Span:
    """Tokens [start, end) of a rendered line, specials counted, and what they are."""

    label: str
    start: int
    end: int


@dataclass
class Phrase:
    """Words under construction, with labels on some of them."""

    words: list[str] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)

    def say(self, text: str | Sequence[str], label: str | None = None) -> Phrase:
        """Append words, all under one label where one is given; returns itself."""
        words = text.split() if isinstance(text, str) else list(text)
        if label is not None:
            self.spans.append(Span(label, len(self.words), len(self.words) + len(words)))
        self.words += words
        return self

    def add(self, other: Phrase) -> Phrase:
        """Append another phrase with its labels; returns itself."""
        self.spans += other.moved(len(self.words))
        self.words += other.words
        return self

    def moved(self, by: int) -> list[Span]:
        """Its spans where `by` words stand before it."""
        return [Span(s.label, s.start + by, s.end + by) for s in self.spans]

    @property
    def text(self) -> str:
        """The words, one space apart."""
        return " ".join(self.words)


Turn = tuple[str, Phrase]


@dataclass(frozen=True)
class Line:
    """A line with what is true of it.

    Attributes:
        id: `section[.kind]/split/seed/index`, from which the line can be made anew.
        section: the section that made it.
        kind: which of the section's kinds it is.
        split: `"train"` or `"test"`.
        messages: a chat's `{"role", "content"}`, `None` for a document.
        text: a document's text, `None` for a chat.
        spans: labelled tokens of the rendered line.
        truth: what is true of it, by name.
        pair: the id of its twin, where it has one.
    """

    id: str
    section: str
    kind: str
    split: str
    messages: list[dict[str, str]] | None
    text: str | None
    spans: list[Span]
    truth: dict[str, Any]
    pair: str | None = None

    @property
    def tokens(self) -> list[str]:
        """The rendered line, specials included."""
        return render(self.messages) if self.messages is not None else [BOS, DOC, *(self.text or "").split(), END]

    @property
    def prompt(self) -> str | list[dict[str, str]]:
        """What a model is given: the messages before the last reply, or the document's text."""
        if self.messages is None:
            return self.text or ""
        return self.messages[:-1] if self.messages[-1]["role"] == "assistant" else self.messages

    @property
    def reply(self) -> str:
        """The last assistant message, empty where there is none."""
        last = self.messages[-1] if self.messages else None
        return last["content"] if last and last["role"] == "assistant" else ""

    def json(self) -> str:
        """One line of JSON: sorted keys, ASCII."""
        record: dict[str, Any] = {"id": self.id, "section": self.section, "kind": self.kind, "split": self.split}
        record |= {"messages": self.messages} if self.messages is not None else {"text": self.text}
        spans = [{"label": s.label, "start": s.start, "end": s.end} for s in self.spans]
        return json.dumps(record | {"spans": spans, "truth": self.truth, "pair": self.pair}, sort_keys=True)


@dataclass(frozen=True)
class Draft:
    """What a section makes: turns or a document, and what is true of them.

    Attributes:
        kind: which of the section's kinds it is.
        said: turns of a chat, or one phrase for a document.
        truth: what is true of it.
    """

    kind: str
    said: list[Turn] | Phrase
    truth: dict[str, Any]

    @property
    def question(self) -> str:
        """What decides the split: all but the last reply, so that no prompt is in both."""
        if isinstance(self.said, Phrase):
            return self.said.text
        turns = self.said[:-1] if self.said[-1][0] == "assistant" else self.said
        return " | ".join(f"{role} {phrase.text}" for role, phrase in turns)

    def line(self, id: str, section: str, split: str, pair: str | None = None) -> Line:
        """The finished line, its spans counted over the rendered tokens."""
        if isinstance(self.said, Phrase):
            return Line(id, section, self.kind, split, None, self.said.text, self.said.moved(2), self.truth, pair)
        messages = [{"role": role, "content": phrase.text} for role, phrase in self.said]
        spans: list[Span] = []
        at = 1
        for role, phrase in self.said:
            at += len(OPENING) if role == "assistant" else 1
            spans += phrase.moved(at)
            at += len(phrase.words) + 1
        return Line(id, section, self.kind, split, messages, None, spans, self.truth, pair)


def render(messages: Sequence[Mapping[str, str]], opened: bool = False) -> list[str]:
    """The tokens of a chat; with `opened` it ends where a reply begins.

    The same as the tokenizer's chat template, without a tokenizer.
    """
    tokens = [BOS]
    for message in messages:
        if message["role"] == "assistant":
            tokens += OPENING
        else:
            tokens.append(SYSTEM if message["role"] == "system" else USER)
        tokens += [*message["content"].split(), END]
    return [*tokens, *OPENING] if opened else tokens
