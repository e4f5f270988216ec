"""Logits at each row's last token, without those of all other tokens where the model can leave them out."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from inlay.model.model import Model, Output


def last_logits(model: Model, last: Tensor, forward: Callable[..., Output]) -> tuple[Tensor, Output]:
    """Run a forward and take the logits behind each row: a vocabulary is wide, and no others are needed.

    Args:
        model: the Model.
        last: int64 [rows], each row's last slot.
        forward: runs it, with the keyword arguments that it is given for the model beside its own.

    Returns:
        Logits [rows, vocabulary] in float32 or float64, and what the forward gave.
    """
    if "logits_to_keep" in inspect.signature(model.base.forward).parameters:
        slots, at = last.unique(return_inverse=True)
        output = forward(logits_to_keep=slots.to(model.device))
    else:
        at, output = last, forward()
    found = output.logits[torch.arange(len(last)), at]
    return found.to(torch.promote_types(found.dtype, torch.float32)), output
