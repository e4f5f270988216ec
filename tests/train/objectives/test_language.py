"""Lang: a concept's loss is the mean over its own response tokens, whatever else is in the batch."""

from __future__ import annotations

import torch
from tests.train.objectives.toy import ROWS, ToyStep, agree, trained

from inlay.train.objectives import Lang


def test_against_the_formula() -> None:
    step = ToyStep(trained())
    tokens = [5, 5, 1]  # 3 + 2 of the first concept, 1 of the second
    expected = [-step.logp(i, "chosen", step.factors()[i]) / tokens[i] for i in range(step.size)]
    agree(step, Lang()(step), expected)  # type: ignore[arg-type]


def test_a_concept_alone_and_among_others() -> None:
    vector = trained()
    together, alone = ToyStep(vector), ToyStep(vector, ROWS[:2])
    torch.testing.assert_close(Lang()(together)[:2], Lang()(alone), rtol=0, atol=0)  # type: ignore[arg-type]
