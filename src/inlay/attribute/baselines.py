"""Baselines: what a token is held against, as embeddings.

Legend: R rows, T tokens, d width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inlay.errors import BaselineError
from inlay.model.chosen import token_text
from inlay.model.inputs import Row, pad
from inlay.model.inserted import embeddings
from inlay.model.sites import Site

if TYPE_CHECKING:
    from inlay.model.model import Model

_AT_ONCE = 4096


@dataclass(frozen=True)
class Counterfactual:
    """Other prompts of the same lengths, token for token: what the scores then explain is the difference to them.

    Attributes:
        prompts, responses: one for each prompt that is explained, see `Encoder.rows`.
        chat: whether plain strings are user turns.
    """

    prompts: Any
    responses: Sequence[str] | None = None
    chat: bool | None = None


@dataclass(frozen=True)
class Expected:
    """Several baselines; scores are the mean over them.

    Attributes:
        of: baselines of any other kind.
    """

    of: Sequence[Any]


@dataclass(frozen=True)
class Baseline:
    """Embeddings that stand for "not there".

    Attributes:
        embeds: [R, T, d], or [1, 1, d] for one at every token.
        name: for labels.
    """

    embeds: Tensor
    name: str


def baselines(model: Model, given: Any, rows: Sequence[Row], owners: Sequence[int] | None = None) -> list[Baseline]:
    """The baselines that are meant, more than one for `Expected` alone.

    Args:
        model: the Model.
        given: `"space"` (the token of one space; without one the pad token, then the unknown one), `"zero"`,
            `"mean"` (of all embeddings), a token as text or id, a `Counterfactual`, an `Expected`, or embeddings [d] or
            [R, T, d].
        rows: the rows that are explained.
        owners: the prompt of each row, where several rows are the beginnings of one.

    Raises:
        BaselineError: there is no such token, or the shapes do not fit.
    """
    if isinstance(given, Expected):
        if not given.of:
            raise BaselineError("Expected([]) is no baseline: give at least one")
        found = [one for some in given.of for one in baselines(model, some, rows, owners)]
        return [Baseline(one.embeds, f"mean over {', '.join(dict.fromkeys(b.name for b in found))}") for one in found]
    if isinstance(given, Counterfactual):
        return [_counterfactual(model, given, rows, owners)]
    if isinstance(given, Tensor):
        return [_given(model, given, rows)]
    if given == "zero":
        return [Baseline(torch.zeros_like(_of(model, rows[0].ids[:1])), "zero")]
    if given == "mean":
        return [Baseline(_mean(model), "mean embedding")]
    token = _space(model) if given == "space" else _token(model, given)
    return [Baseline(_of(model, [token]), repr(token_text(model, token)))]


def _space(model: Model) -> int:
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise BaselineError("baseline='space' needs a tokenizer: give an id, 'zero' or 'mean'")
    ids = tokenizer(" ", add_special_tokens=False)["input_ids"]
    if len(ids) == 1:
        return int(ids[0])
    for found in (tokenizer.pad_token_id, tokenizer.unk_token_id):
        if found is not None:
            return int(found)
    raise BaselineError(
        f"baseline='space': a space is {len(ids)} tokens for this tokenizer, and it has neither a pad nor an unknown "
        "token: give an id, 'zero' or 'mean'"
    )


def _token(model: Model, given: Any) -> int:
    vocabulary = model.encoder.vocabulary
    if isinstance(given, Integral) and not isinstance(given, bool):
        if vocabulary is not None and not 0 <= int(given) < vocabulary:
            raise BaselineError(f"baseline={given} is no token: the model has ids from 0 to {vocabulary - 1}")
        return int(given)
    if not isinstance(given, str):
        raise BaselineError(
            f"baseline={given!r:.60}: 'space', 'zero', 'mean', a token, a Counterfactual or an Expected"
        )
    if model.tokenizer is None:
        raise BaselineError(f"baseline={given!r} is text, and the model has no tokenizer: give its id")
    ids = model.tokenizer(given, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise BaselineError(f"baseline={given!r} is {len(ids)} tokens for this tokenizer: give one, or its id")
    return int(ids[0])


def _mean(model: Model) -> Tensor:
    """The mean over all of the table, [1, 1, d]."""
    count = model.encoder.vocabulary
    if count is None:
        raise BaselineError("baseline='mean': the model has no table of embeddings")
    total = torch.zeros((), device=model.device, dtype=torch.float64)
    for start in range(0, count, _AT_ONCE):
        found = _of(model, range(start, min(count, start + _AT_ONCE)))
        total = total + found.double().sum(1)
    return (total / count).to(found.dtype)[:, None]


def _given(model: Model, embeds: Tensor, rows: Sequence[Row]) -> Baseline:
    width = model.sites().place(Site("embed")).width
    shape = (len(rows), max(len(row.ids) for row in rows), width)
    if embeds.shape not in ((width,), shape):
        raise BaselineError(f"baseline {list(embeds.shape)}: give embeddings [{width}] or {list(shape)}")
    return Baseline(embeds.detach().to(model.device).reshape(1, 1, -1) if embeds.ndim == 1 else embeds, "given")


def _counterfactual(model: Model, given: Counterfactual, rows: Sequence[Row], owners: Sequence[int] | None) -> Baseline:
    others = model.encoder.rows(given.prompts, given.responses, given.chat)
    if owners is not None:
        if len(others) != max(owners) + 1:
            raise BaselineError(f"{len(others)} counterfactual prompts for {max(owners) + 1}: give one for each")
        cut = [others[owner].ids[: len(row.ids)] for row, owner in zip(rows, owners, strict=True)]
        others = [Row(ids, len(ids)) for ids in cut]
    if len(others) != len(rows):
        raise BaselineError(f"{len(others)} counterfactual prompts for {len(rows)} rows: give one for each")
    for index, (row, other) in enumerate(zip(rows, others, strict=True)):
        if len(row.ids) != len(other.ids):
            raise BaselineError(
                f"row {index} has {len(row.ids)} tokens and its counterfactual {len(other.ids)}: they are compared "
                "token for token"
            )
    ids = pad(others, model.pad_id, model.device).ids
    return Baseline(embeddings(model, ids), "counterfactual")


def _of(model: Model, ids: Sequence[int]) -> Tensor:
    """The embeddings of some tokens, [1, n, d]."""
    return embeddings(model, torch.tensor([list(ids)]))
