"""What an encoder-decoder model is called with beside its encoder's rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inlay.errors import InputError, ModelError
from inlay.model.inputs import Row, pad

if TYPE_CHECKING:
    from inlay.model.model import Model


def refuse(model: Model, what: str) -> None:
    """Raise where a model has two stacks and `what` knows only one.

    Raises:
        ModelError: it has.
    """
    if model.sites().encoder:
        raise ModelError(
            f"{what} starts from one stack of blocks, and {type(model.base).__name__} has an encoder and a decoder; "
            "use model.forward(prompts, responses=...), or inlay.load(model.get_encoder()) for the encoder alone"
        )


def decoder_arguments(model: Model, rows: int, responses: Sequence[str] | None, loss: bool) -> dict[str, Tensor]:
    """The decoder's ids [rows, tokens], mask and labels: its start token, and behind it the response.

    Args:
        model: the Model.
        rows: how many rows the encoder has.
        responses: one response text a row; `None`: the start token alone.
        loss: whether labels are wanted.

    Raises:
        InputError: another number of responses, or a loss without any.
        ModelError: the model does not say with which token its decoder starts.
    """
    start = getattr(model.base.config, "decoder_start_token_id", None)
    if start is None:
        raise ModelError(f"{type(model.base).__name__} has no decoder_start_token_id: pass decoder_input_ids=")
    if responses is None:
        if loss:
            raise InputError("the loss of an encoder-decoder model is that of its responses: pass responses=")
        return {"decoder_input_ids": torch.full((rows, 1), start, device=model.device)}
    said = [list(row.ids) for row in model.encoder.rows(list(responses), chat=False)]
    if len(said) != rows:
        raise InputError(f"{len(said)} responses for {rows} prompts: give one for each")
    fed = [[start, *ids] for ids in said]
    batch = pad([Row(tuple(ids), len(ids)) for ids in fed], model.pad_id, model.device)
    found = {"decoder_input_ids": batch.ids, "decoder_attention_mask": batch.mask}
    if loss:
        after = pad([Row((*ids, 0), len(ids)) for ids in said], 0, model.device)  # what follows each fed token
        last = batch.mask.sum(1, keepdim=True) - 1
        real = torch.arange(batch.ids.shape[1], device=model.device) < last
        found["labels"] = after.ids.masked_fill(~real, -100)
    return found
