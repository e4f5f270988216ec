"""Recipe: schedules by hand, and what is out of range."""

from __future__ import annotations

import math
from typing import Any

import pytest

from inlay.errors import TrainError
from inlay.train.recipe import Recipe


def test_the_rate_rises_and_falls() -> None:
    recipe = Recipe(lr=1.0, warmup=0.25)
    assert [recipe.rate(step, 8) for step in range(8)] == pytest.approx([0, 0.5, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert Recipe(lr=2.0, schedule="constant").rate(7, 8) == 2.0
    cosine = Recipe(lr=1.0, schedule="cosine")
    assert cosine.rate(2, 8) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4))) and cosine.rate(0, 8) == 1.0


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("epochs", 0),
        ("batch", 0),
        ("accumulate", -1),
        ("lr", 0.0),
        ("lr", math.inf),
        ("clip", -1.0),
        ("warmup", 1.0),
        ("weight_decay", -0.1),
        ("betas", (0.9, 1.0)),
        ("schedule", "step"),
        ("patience", 0),
    ],
)
def test_out_of_range(setting: str, value: Any) -> None:
    with pytest.raises(TrainError, match=setting):
        Recipe(**{setting: value})
