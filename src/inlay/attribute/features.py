"""Features: which tokens are scored, and which of them count as one.

Legend: R rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from inlay.errors import ModelError, TokensError
from inlay.model.chosen import chosen_slots
from inlay.model.inputs import Row, pad

if TYPE_CHECKING:
    from inlay.attribute.token_scores import TokenScores
    from inlay.model.model import Model

Feature = tuple[int, ...]
_STARTS = ("Ġ", "▁", " ")


def features(model: Model, rows: Sequence[Row], within: Any = "all", by: Any = "token") -> list[list[Feature]]:
    """For each row its features, each a tuple of slots, in the order of their first one.

    Args:
        model: the Model.
        rows: the rows.
        within: which tokens are scored, as for any Tokens; the others stay as they are, and have no score.
        by: `"token"`, `"word"` (by the tokenizer's own marks of a word's start), or a list of Tokens of which each is
            one feature (`[span("Paris"), "inst_end"]`).

    Raises:
        TokensError: no token of a row is scored, or two features share one.
        ModelError: `"word"` without a tokenizer.
    """
    batch = pad(list(rows), model.pad_id, torch.device("cpu"))
    inside = chosen_slots(model, batch, within)
    if bad := [r for r, some in enumerate(inside) if not some.any()]:
        raise TokensError(f"within={within!r} means no token of row {bad[0]}: nothing there could be scored")
    if by == "token":
        return [[(slot,) for slot in row.nonzero().flatten().tolist()] for row in inside]
    if by == "word":
        words = [_words(model, row.ids) for row in rows]
    elif isinstance(by, (list, tuple)):
        tables = [chosen_slots(model, batch, spec) for spec in by]
        words = [[tuple(table[r].nonzero().flatten().tolist()) for table in tables] for r in range(len(rows))]
    else:
        raise TokensError(f"by={by!r}: 'token', 'word', or a list of Tokens")
    found = []
    for r, some in enumerate(words):
        mine = [tuple(slot for slot in feature if inside[r, slot]) for feature in some]
        mine = sorted((feature for feature in mine if feature), key=lambda feature: feature[0])
        every = [slot for feature in mine for slot in feature]
        if not mine or len(set(every)) < len(every):
            why = "two features share a token" if mine else "no feature has a token"
            raise TokensError(f"by={by!r}: {why} in row {r}")
        found.append(mine)
    return found


def groups(model: Model, scores: TokenScores, by: Any = "word") -> list[list[Feature]]:
    """The groups of tokens in scored rows, for `TokenScores.by`.

    Args:
        model: the Model.
        scores: its scores.
        by: as in `features`.

    Raises:
        TokensError, ModelError: as for `features`.
    """
    return features(model, [Row(tuple(ids), len(ids)) for ids in scores.ids], "all", by)


def _words(model: Model, ids: Sequence[int]) -> list[Feature]:
    """The words of a row; each special token is one of its own."""
    if model.tokenizer is None:
        raise ModelError("words are the tokenizer's, and the model has none: use by='token'")
    pieces = model.tokenizer.convert_ids_to_tokens(list(ids))
    special = set(model.tokenizer.all_special_ids)
    marked = any(piece.startswith(_STARTS) for piece in pieces)
    words: list[list[int]] = []
    for slot, (token, piece) in enumerate(zip(ids, pieces, strict=True)):
        goes_on = piece.startswith("##") or (marked and not piece.startswith(_STARTS))
        if words and goes_on and token not in special and ids[words[-1][-1]] not in special:
            words[-1].append(slot)
        else:
            words.append([slot])
    return [tuple(word) for word in words]
