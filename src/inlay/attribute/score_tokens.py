"""Score the tokens of prompts: how much each one raises what the model is asked about."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inlay.attribute.asked import Asked
from inlay.attribute.backward import backward_rules, refuse_dropout
from inlay.attribute.baselines import baselines
from inlay.attribute.features import features
from inlay.attribute.methods import Chosen, Method, method, refuse_flat
from inlay.attribute.question import Target, question
from inlay.attribute.report import RuleReport
from inlay.attribute.rules import RuleSet
from inlay.attribute.token_scores import TokenScores
from inlay.model.answers import Answer
from inlay.model.chosen import token_text
from inlay.model.two_stacks import refuse

if TYPE_CHECKING:
    from inlay.model.model import Model

_score_method = method


@torch.inference_mode(False)  # a caller's would leave the embeddings without gradients
def tokens(
    model: Model,
    prompts: Any,
    target: Target = None,
    foil: Answer | Sequence[Answer] | None = None,
    method: str | Method = "gim",
    *,
    baseline: Any = "space",
    at: Any = None,
    quantity: str | None = None,
    responses: Sequence[str] | None = None,
    per_step: bool = False,
    within: Any = "all",
    by: Any = "token",
    rules: str | RuleSet | None = None,
    batch_tokens: int = 8192,
    seed: int = 0,
    chat: bool | None = None,
    **settings: Any,
) -> TokenScores:
    """What each token adds to a number that the model gives.

    Rows are batched; each row's scores are those that it has alone. Parameters get no gradient. An Edit that is in
    force (`with model.edited(...)`) is part of the model that is explained.

    Args:
        model: the Model.
        prompts, responses, chat: see `Encoder.rows`.
        target, foil, at, quantity, per_step: what is explained; see `question`.
        method: a rule set of `PRESETS`, of which the score is (x - b).gradient: `"gim"`, `"attnlrp"`, `"cp_lrp"`,
            `"transformer_lrp"`, `"relp"`, `"relp_ah"`, and `"grad"` for gradient x input; a name of `METHODS`; or a
            function of an `Asked`.
        baseline: what a token is held against; see `baselines`.
        within: which tokens are scored; the others stay as they are in every run.
        by: what is scored as one: `"token"`, `"word"`, or a list of Tokens; see `features`. Methods that replace tokens
            replace such a feature as a whole, and give each of its tokens an equal part of its score.
        rules: a rule set under which a method of gradients takes them, such as `method="ig", rules="gim"`.
        batch_tokens: the most padded tokens of one forward.
        seed: of a method's random draws.
        **settings: of the method, such as `n=50` for `"ig"`.

    Raises:
        TargetError, BaselineError, TokensError, InputError: what is asked does not fit; see the classes.
        RuleError: a rule does not apply to the model, or dropout is on; the message says which and why.
    """
    refuse(model, "attribute.tokens")
    refuse_dropout(model.base)
    chosen = _score_method(method, rules, **settings)
    refuse_flat(method, quantity)
    asks = question(
        model,
        prompts,
        target,
        foil,
        at=at,
        quantity=quantity,
        responses=responses,
        per_step=per_step,
        batch_tokens=batch_tokens,
        chat=chat,
    )
    given = baselines(model, baseline if chosen.baseline is None else "zero", asks.rows, asks.owners)
    scored = features(model, asks.rows, within, by)
    every = [Asked(model, asks, one, scored, batch_tokens, seed) for one in given]
    return scores_of(every, chosen)


def scores_of(every: Sequence[Asked], chosen: Chosen) -> TokenScores:
    """The scores of a method, their mean over several baselines of the same question.

    Args:
        every: the same question against each baseline.
        chosen: the method.
    """
    first = every[0]
    model, asks = first.model, first.question

    def explain(asked: Asked) -> Tensor:
        with _under(chosen.rules, model):
            return chosen.score(asked).detach()

    with _under(chosen.rules, model) as hit:
        scores = torch.stack([chosen.score(asked).detach().float() for asked in every]).mean(0)
    return TokenScores(
        scores=scores.masked_fill(~first.scored, torch.nan).cpu(),
        tokens=[[token_text(model, one) for one in row.ids] for row in asks.rows],
        ids=[list(row.ids) for row in asks.rows],
        target=asks.target,
        foil=asks.foil,
        quantity=asks.quantity,
        method=chosen.name,
        baseline=first.baseline.name if chosen.baseline is None else chosen.baseline,
        m_clean=first.all_values(base=False),
        m_baseline=_ground(every) if chosen.baseline is None else torch.full((len(asks.rows),), torch.nan),
        steps=None if asks.steps is None else list(asks.steps),
        report="" if hit is None else str(hit),
        signed=chosen.signed,
        asked=tuple(every),
        explain=explain,
    )


def _ground(every: Sequence[Asked]) -> Tensor:
    """The number on each row's baseline, the mean over several, [R]."""
    return torch.stack([asked.all_values(base=True) for asked in every]).mean(0)


def _under(rules: RuleSet | None, model: Model) -> AbstractContextManager[RuleReport | None]:
    return nullcontext() if rules is None else backward_rules(model, rules)
