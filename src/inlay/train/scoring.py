"""What a forward says of the responses in its batch: their log-probs, and the logits that predict them.

Legend: R rows, T slots, V vocabulary, n response tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from inlay.errors import TrainError
from inlay.model.inputs import Row

if TYPE_CHECKING:
    from inlay.model.model import Output


@dataclass(frozen=True)
class Predicted:
    """The responses of one forward.

    Attributes:
        logps: float32 [R], summed over a response's tokens.
        logits: [R, n, V], those that predict each response token, zeros behind a row's own; `None` if not asked for.
        mask: bool [R, n], which of these are real.
        output: the forward's own output.
    """

    logps: Tensor
    logits: Tensor | None
    mask: Tensor
    output: Output


def predicted(output: Output, rows: Sequence[Row], logits: bool = False) -> Predicted:
    """Read the responses off a forward's logits, which may have been kept for the last slots alone.

    Args:
        output: the forward's output over right-padded rows.
        rows: the rows, each with its prompt's length.
        logits: also give the logits.

    Raises:
        TrainError: the logits do not cover the responses, or are a classifier's.
    """
    every = output.logits
    if every.ndim != 3:
        raise TrainError(
            f"the model gave scores of {every.shape[-1]} classes and predicts no tokens: train it, and its head, as an "
            "EditedModel with train_head=True; fit trains it on objectives that read states alone (probe_bce)"
        )
    slots = output.mask.shape[1]
    offset = slots - every.shape[1]
    if offset > min(row.prompt for row in rows) - 1:
        raise TrainError(f"the model gave logits for {every.shape[1]} of {slots} tokens, which leaves out responses")
    index = torch.tensor([i for i, row in enumerate(rows) for _ in range(len(row.ids) - row.prompt)])
    slot = torch.cat([torch.arange(row.prompt, len(row.ids)) for row in rows])
    target = torch.tensor([token for row in rows for token in row.ids[row.prompt :]])
    index, slot, target = (one.to(every.device) for one in (index, slot, target))
    mine = every.flatten(0, 1).index_select(0, index * every.shape[1] + slot - 1 - offset)
    losses = cross_entropy(mine.float(), target, reduction="none")
    logps = torch.zeros(len(rows), device=every.device).index_add(0, index, -losses)
    counts = [len(row.ids) - row.prompt for row in rows]
    mask = torch.arange(max(counts), device=every.device)[None] < torch.tensor(counts, device=every.device)[:, None]
    aligned = pad_sequence(list(mine.split(counts)), batch_first=True) if logits else None
    return Predicted(logps, aligned, mask, output)
