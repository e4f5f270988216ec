"""Each prompt's answer as a row of a table of ids.

Legend: n prompts, m the most ids of one answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from inlay.causal.metrics import Answer, id_table, token_ids
from inlay.model.sites import Site

if TYPE_CHECKING:
    from inlay.model.model import Model


def answer_table(model: Model, answers: Answer | Sequence[Answer], prompts: int) -> tuple[Tensor, Tensor]:
    """The ids of every prompt's answer, int64 [n, m], and which of them there are, bool [n, m].

    Rows are filled up with their own first id.

    Args:
        model: the Model.
        answers: as in `logit_difference`: a text that is one token, an id, or a list of such for an answer of several;
            one for all prompts, or a list with one for each.
        prompts: n.

    Raises:
        CausalError: a text is no single token, an id is none, or there is another number of answers than of prompts.
        ModelError: a text is given, and the model has no tokenizer.
    """
    return id_table(token_ids(model, answers, prompts), model.sites().place(Site("logits")).width)
