"""The training loop of `inlay.train.fit` held open, so that its steps can be timed one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from random_llama import SIZES
from torch import Tensor

import inlay
from inlay.model.inputs import Row
from inlay.train import Example, Lang, Recipe
from inlay.train.concept import Learning
from inlay.train.frozen import Frozen, lowest
from inlay.train.loop import Loop
from inlay.train.order import Order

LR, EPOCHS = 1e-3, 5000  # more epochs than are timed; the rate falls by little over those that are
ADAM = {"lr": LR, "weight_decay": 0.0}  # what `Recipe` sets, for the loops by hand


def sequences(size: str, rows: int, prompt: int, response: int, seed: int = 5) -> Tensor:
    """Random ids of prompts and responses, int64 [rows, prompt + response]."""
    draws = torch.Generator().manual_seed(seed)
    return torch.randint(1, SIZES[size]["vocab_size"], (rows, prompt + response), generator=draws)


def steps(model: inlay.Model, edit: inlay.Edit, ids: Tensor, prompt: int, resume: bool) -> Callable[[], float]:
    """The loop of `fit` with the objective `Lang` on one mini-batch again and again; gives the loss before each step.

    Args:
        model: the Model.
        edit: what is trained.
        ids: the mini-batch, int64 [rows, tokens].
        prompt: how many of the tokens are prompt.
        resume: whether the blocks below the Edit run once.
    """
    recipe = Recipe(epochs=EPOCHS, lr=LR, batch=len(ids))
    order = Order.of(len(ids), batch=recipe.batch, accumulate=1, epochs=EPOCHS, seed=recipe.seed)
    edit = inlay.Edit.of(edit.parts, model.identity())
    frozen = Frozen(model, lowest(model, edit) if resume else None, recipe.batch_tokens)
    rows = [Row(tuple(row), prompt) for row in ids.tolist()]
    examples: list[Any] = [Example(row.ids[:prompt], row.ids[prompt:]) for row in rows]
    numbers = [{"chosen": number} for number in frozen.add(rows)]
    concept = Learning("", 0, examples, numbers, False, order, len(order.steps))
    frozen.keep([each["chosen"] for each in numbers], logps=False)
    loop = Loop(frozen, edit, Lang(), [concept], recipe)

    def step() -> float:
        return float(loop.step()[0]["loss"])

    return step
