"""How rows of a concept set become texts that a model reads, cut to its context where they are longer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from inlay.bench.concept_set import Row
from inlay.directions.contrast import Text

if TYPE_CHECKING:
    from inlay.model.model import Model


def text_of(row: Row, chat: bool) -> Text:
    """A row as the model reads it: instruction and response, or free text as a prompt.

    Args:
        row: the row.
        chat: whether the model takes an instruction as a user's turn; without one, a line's end stands between both.
    """
    if not row.input:
        return Text(row.output)
    return Text(row.input if chat else row.input + "\n", row.output)


def texts_of(model: Model, rows: Iterable[Row]) -> tuple[dict[Row, Text], int]:
    """Each distinct row's text, and how many were cut to the model's context.

    A text that is too long loses the end of its response; a prompt that alone is too long loses its middle third and
    more, so that both of its ends, template included, remain.
    """
    found, cut = {}, 0
    for row in dict.fromkeys(rows):
        text = text_of(row, model.encoder.chat)
        short = _fitted(model, text)
        cut += short is not text
        found[row] = short
    return found, cut


def _fitted(model: Model, text: Text) -> Text:
    limit = model.encoder.limit
    if limit is None or len(f"{text.prompt}{text.response or ''}".encode()) < limit // 2:  # a token is a byte or more
        return text
    unlimited = model.encoder.without_limit()
    (row,) = unlimited.rows([text.prompt], None if text.response is None else [text.response])
    if len(row.ids) <= limit:
        return text
    prompt = list(row.ids[: row.prompt])
    if len(prompt) > limit // 2:
        keep = limit // 4
        prompt = prompt[:keep] + prompt[-keep:]
    said = list(row.ids[row.prompt :][: limit - len(prompt)])
    while said:
        short = Text(prompt, model.encoder.decode(said))  # as text, so that it stays marked as response
        if len(unlimited.rows([prompt], [short.response or ""])[0].ids) <= limit:
            return short
        said.pop()  # what was cut in the middle of a character can take more tokens than it had
    return Text(prompt)
