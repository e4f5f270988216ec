"""Contrast: the texts that have a concept and those that do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inlay.errors import DirectionError


@dataclass(frozen=True)
class Text:
    """One text that activations are read from.

    Attributes:
        prompt: plain text, or a chat (a list of `{"role", "content"}`); see `Encoder.rows`.
        response: what follows the prompt, marked as response; `None` for none.
    """

    prompt: Any
    response: str | None = None

    @classmethod
    def of(cls, given: Any) -> Text:
        """A Text from itself, a prompt, or a pair (prompt, response).

        Raises:
            DirectionError: it is none of these.
        """
        if isinstance(given, Text):
            return given
        if isinstance(given, str):
            return cls(given)
        if isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], str):
            return cls(given[0], given[1])
        if isinstance(given, Sequence) and given and all(isinstance(turn, Mapping) for turn in given):
            return cls(given)
        raise DirectionError(f"{given!r:.80} is no text: give a string, a chat, or a pair (prompt, response)")


@dataclass(frozen=True)
class Contrast:
    """The texts of one concept.

    Attributes:
        name: the concept's.
        positives: texts that have it.
        negatives: texts that do not.

    Raises:
        DirectionError: a side is empty.
    """

    name: str
    positives: tuple[Text, ...]
    negatives: tuple[Text, ...]

    def __post_init__(self) -> None:
        for side, texts in (("positives", self.positives), ("negatives", self.negatives)):
            if not texts:
                raise DirectionError(f"{self.name}: there are no {side}; give at least one text")

    @classmethod
    def of(cls, name: str, positives: Sequence[Any], negatives: Sequence[Any]) -> Contrast:
        """From texts in any form that `Text.of` takes.

        Raises:
            DirectionError: a side is empty, or an entry is no text.
        """
        for side, texts in (("positives", positives), ("negatives", negatives)):
            if isinstance(texts, str):
                raise DirectionError(f"{name}: the {side} are {texts!r:.80}; give a list of texts")
        return cls(name, tuple(map(Text.of, positives)), tuple(map(Text.of, negatives)))
