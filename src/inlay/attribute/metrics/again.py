"""What given scores answer: kept with scores that were just made, and asked anew for scores from disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from inlay.attribute.asked import Asked
from inlay.attribute.baselines import baselines
from inlay.attribute.features import features
from inlay.attribute.question import Projection, question
from inlay.errors import InputError

if TYPE_CHECKING:
    from inlay.attribute.token_scores import TokenScores
    from inlay.model.model import Model

_QUESTION = ("prompts", "target", "foil", "at", "quantity", "responses", "per_step", "chat")
_REST = ("baseline", "within", "by", "batch_tokens")


def asked_for(model: Model, scores: TokenScores, again: Mapping[str, Any]) -> tuple[Asked, ...]:
    """What the scores were asked for, against each baseline.

    Args:
        model: the Model.
        scores: the scores.
        again: the arguments that `tokens` had; empty for scores that were not loaded.

    Raises:
        InputError: the scores were loaded and nothing is asked anew, they are another model's, or what is asked is not
            what they answer.
    """
    if again:
        every = _anew(model, again)
        same_question(scores, every[0])
        return every
    if not scores.asked:
        raise InputError(
            "these scores are from disk, which does not hold what was asked: give the arguments of "
            "inlay.attribute.tokens again (prompts=, and target=, foil=, at=, baseline=, within=, by= where they were "
            "given)"
        )
    if scores.asked[0].model is not model:
        raise InputError("these scores are of another model: give that one, or prompts= and target= again for this one")
    return scores.asked


def same_question(scores: TokenScores, asked: Asked) -> None:
    """Refuse scores that answer something else.

    Raises:
        InputError: other tokens, another target, foil or quantity, or one that is read elsewhere.
    """
    asks = asked.question
    pairs: tuple[tuple[str, Any, Any], ...] = (
        ("tokens", scores.ids, [list(row.ids) for row in asks.rows]),
        ("quantity", scores.quantity, asks.quantity),
        ("target", scores.target, asks.target),
        ("foil", scores.foil, asks.foil),
    )
    if scores.asked:  # not on disk
        own = scores.asked[0].question
        pairs += (
            ("read positions", own.slots, asks.slots),
            ("function", own.function, asks.function),
            ("projection", _shown(own.projection), _shown(asks.projection)),
        )
    for name, mine, theirs in pairs:
        if mine != theirs:
            raise InputError(
                f"the scores by {scores.method} are of other {name} than what is asked: {mine!r:.60} and {theirs!r:.60}"
            )


def _shown(projection: Projection | None) -> tuple[str, list[float]] | None:
    return None if projection is None else (str(projection.site), projection.vector.tolist())


def _anew(model: Model, again: Mapping[str, Any]) -> tuple[Asked, ...]:
    if unknown := [name for name in again if name not in (*_QUESTION, *_REST)]:
        raise InputError(f"no argument {', '.join(unknown)}; what is asked again has {', '.join((*_QUESTION, *_REST))}")
    if "prompts" not in again:
        raise InputError(f"{', '.join(again)} without prompts=: give all that was asked")
    tokens = again.get("batch_tokens", 8192)
    asks = question(model, **{name: again[name] for name in _QUESTION if name in again}, batch_tokens=tokens)
    given: Sequence[Any] = baselines(model, again.get("baseline", "space"), asks.rows, asks.owners)
    scored = features(model, asks.rows, again.get("within", "all"), again.get("by", "token"))
    return tuple(Asked(model, asks, one, scored, tokens) for one in given)
