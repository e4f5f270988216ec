"""Answers: which token ids a text or a list of texts means, one answer for each prompt.

Legend: n prompts, m the most ids of one answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inlay.errors import ModelError, TargetError
from inlay.model.sites import Site

if TYPE_CHECKING:
    from inlay.model.model import Model

Answer = str | int | Sequence[str | int]


def answer_table(model: Model, answers: Answer | Sequence[Answer], prompts: int) -> tuple[Tensor, Tensor]:
    """The ids of every prompt's answer, int64 [n, m], and which of them there are, bool [n, m].

    Rows are filled up with their own first id.

    Args:
        model: the Model.
        answers: a text that is one token, an id, or a list of such for an answer of several;
            one for all prompts, or a list with one for each.
        prompts: n.

    Raises:
        TargetError: a text is no single token, an id is none, or there is another number of answers than of prompts.
        ModelError: a text is given, and the model has no tokenizer.
    """
    return id_table(token_ids(model, answers, prompts), model.sites().place(Site("logits")).width)


def token_ids(model: Model, answers: Any, total: int) -> list[list[int]]:
    """The ids of each of `total` prompts' answers, see `answer_table`.

    Raises:
        TargetError: a text is no single token, or there is another number of answers than of prompts.
        ModelError: a text is given, and the model has no tokenizer.
    """
    if isinstance(answers, Tensor):
        answers = answers.tolist()
    if isinstance(answers, (str, Integral)):
        return [[_id(model, answers)]] * total
    if len(answers) != total:
        raise TargetError(f"{len(answers)} answers for {total} prompts: give one for all of them, or one for each")
    each = [[one] if isinstance(one, (str, Integral)) else list(one) for one in answers]
    if not all(each):
        raise TargetError(f"the answer of prompt {each.index([])} is empty: give at least one token")
    return [[_id(model, token) for token in one] for one in each]


def id_table(each: Sequence[Sequence[int]], vocabulary: int) -> tuple[Tensor, Tensor]:
    """Answers of several ids as a table int64 [n, m], rows filled up with their first id, and bool [n, m]: which are.

    Raises:
        TargetError: an id is no token.
    """
    if bad := [i for ids in each for i in ids if not 0 <= i < vocabulary]:
        raise TargetError(f"the answer {bad[0]} is no token: the model has ids from 0 to {vocabulary - 1}")
    most = max(map(len, each))
    table = torch.tensor([[*ids, *[ids[0]] * (most - len(ids))] for ids in each])
    return table, torch.arange(most) < torch.tensor([[len(ids)] for ids in each])


def _id(model: Model, answer: Any) -> int:
    if not isinstance(answer, str):
        return int(answer)
    if model.tokenizer is None:
        raise ModelError(f"the answer {answer!r} is text, and the model has no tokenizer: give its id")
    ids = model.tokenizer(answer, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        pieces = [model.encoder.decode([i]) for i in ids]
        raise TargetError(
            f"the answer {answer!r} is {len(ids)} tokens for this tokenizer, {pieces}; give one token, as it is "
            "written there (often with a space in front), or its id"
        )
    return int(ids[0])
