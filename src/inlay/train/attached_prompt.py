"""Which tokens of a trainer's batch are prompt and which are response.

Legend: R rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor

from inlay.errors import TrainError


def prompt_of(
    ids: Any, batch: Mapping[str, Any], prompt_mask: Any, completion_mask: Any, causal: bool, training: bool
) -> Tensor | None:
    """Which tokens of a batch are prompt, bool [R, T]; `None` for all of them.

    Args:
        ids: the ids or embeddings [R, T, ...], `None` where the batch has neither.
        batch: what the model is called with.
        prompt_mask, completion_mask: what the batch says of it; the first one counts.
        causal: whether the labels are those of a causal model, so that they begin behind the prompt.
        training: whether the model is in training mode.

    Raises:
        TrainError: rows hold several sequences; or, in training mode, nothing says what is prompt.
    """
    if batch.get("cu_seq_lens_q") is not None:
        raise TrainError(
            "this batch packs several sequences into a row, and the Edit's tokens count from a row's start and end: "
            "train with packing=False and padding_free=False, or edit tokens='all'"
        )
    if prompt_mask is not None:
        return cast(Tensor, prompt_mask.bool())
    if completion_mask is not None:
        return cast(Tensor, ~completion_mask.bool())
    labels = batch.get("labels")
    if not causal or (labels is None and not training):
        return None
    if labels is None:
        raise TrainError(
            "a batch without labels does not say which tokens are prompt, and the Edit's tokens depend on it: give "
            "labels that are -100 on the prompt, or a column prompt_mask (label smoothing and compute_loss_func take "
            "the labels away); call eval() where everything is prompt"
        )
    return before_labels(labels, batch.get("attention_mask"), ids.shape[1])


def before_labels(labels: Tensor, attention_mask: Tensor | None, slots: int) -> Tensor:
    """Which tokens lie before their row's first label, bool [R, T]; the whole row where no token does.

    Args:
        labels: int64 [R, T], -100 where nothing is asked.
        attention_mask: [R, T], `None` where nothing is padded.
        slots: T.

    Raises:
        TrainError: the labels have another shape.
    """
    if labels.ndim != 2 or labels.shape[1] != slots:
        raise TrainError(f"labels are {list(labels.shape)}, and a row has {slots} tokens: give one label a token")
    before = (labels != -100).cumsum(1) == 0
    real = before if attention_mask is None or attention_mask.ndim != 2 else before & attention_mask.bool()
    return before | ~real.any(1, keepdim=True)
