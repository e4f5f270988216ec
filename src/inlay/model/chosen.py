"""Which tokens of prompts a Tokens spec means, and how a token is shown.

Legend: R rows, T slots.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from inlay.model.frame import Prompt
from inlay.model.inputs import Batch
from inlay.model.tokens import Tokens

if TYPE_CHECKING:
    from inlay.model.model import Model


def chosen_slots(model: Model, batch: Batch, tokens: Any) -> Tensor:
    """The slots of padded rows that a spec means, bool [R, T].

    Args:
        model: the Model, whose tokenizer finds words.
        batch: the rows.
        tokens: see `Tokens.parse`.

    Raises:
        TokensError: a row lacks a position or a text.
    """
    rows, slots = batch.ids.shape
    prompt = Prompt(rows, slots, batch.ids.device, batch.mask.bool(), batch.prompt, batch.ids)
    prompt.resolve([Tokens.parse(tokens)], model.text)
    table = prompt.tables[0]
    return prompt.part("all") if table is None else table


def token_text(model: Model, token: int) -> str:
    """A token as text; its id where the model has no tokenizer."""
    return str(token) if model.tokenizer is None else model.encoder.decode([token])
