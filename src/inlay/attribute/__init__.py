"""Attribution: which tokens and parts an output comes from, by rules that change the backward pass, and how well.

`tokens` scores the tokens of prompts and `site` the parts of a model, by a method of `METHODS` or a rule set of
`PRESETS`; `backward_rules` is the context that both stand on, for any gradient of your own; `faithfulness`
measures scores beside chance and the best that is possible.
"""

from inlay.attribute.asked import Asked
from inlay.attribute.backward import backward_rules
from inlay.attribute.baselines import Counterfactual, Expected
from inlay.attribute.features import groups
from inlay.attribute.interaction import softmax_interaction
from inlay.attribute.methods import METHODS
from inlay.attribute.metrics import COLUMNS, Faithfulness, faithfulness
from inlay.attribute.pictures import (
    head_figure,
    head_html,
    matrix_figure,
    matrix_html,
    step_figure,
    step_html,
    token_html,
    token_latex,
)
from inlay.attribute.question import Projection
from inlay.attribute.report import RuleReport
from inlay.attribute.rules import PRESETS, RuleSet
from inlay.attribute.score_sites import site
from inlay.attribute.score_tokens import tokens
from inlay.attribute.site_scores import SiteScores
from inlay.attribute.token_scores import TokenScores

__all__ = [
    "COLUMNS",
    "METHODS",
    "PRESETS",
    "Asked",
    "Counterfactual",
    "Expected",
    "Faithfulness",
    "Projection",
    "RuleReport",
    "RuleSet",
    "SiteScores",
    "TokenScores",
    "backward_rules",
    "faithfulness",
    "groups",
    "head_figure",
    "head_html",
    "matrix_figure",
    "matrix_html",
    "site",
    "softmax_interaction",
    "step_figure",
    "step_html",
    "token_html",
    "token_latex",
    "tokens",
]
