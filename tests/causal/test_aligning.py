"""The schedule of an alignment's training, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.causal import planted
from torch import Tensor, nn

from inlay import Edit, Function, Source
from inlay.causal.aligning import Recipe, train
from inlay.causal.stored_runs import StoredRuns
from inlay.errors import CausalError
from inlay.interventions import Intervention
from inlay.model.call import Call, State

GIVEN: dict[str, Any] = {
    "epochs": 1, "batch": 4, "lr": 1e-2, "mask_lr": 1e-2, "warmup": 0.2, "penalty": 1.0, "cool_to": None, "seed": 0,
}  # fmt: skip


def test_learning_rates_rise_and_fall() -> None:
    recipe = Recipe(**GIVEN)
    rates = [recipe.rate(step, 10, falls=True) for step in range(10)]
    assert rates == pytest.approx([1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
    assert [recipe.rate(step, 10, falls=False) for step in range(10)] == pytest.approx([1 / 3, 2 / 3, *[1] * 8])
    assert Recipe(**{**GIVEN, "warmup": 0.0}).rate(0, 5, falls=True) == 1.0


def test_masks_cool_in_a_line() -> None:
    heats = [Recipe(**GIVEN).heat(50.0, step, 5) for step in range(5)]
    assert heats == pytest.approx([50.0, 37.525, 25.05, 12.575, 0.1])
    assert Recipe(**{**GIVEN, "cool_to": 2.0}).heat(50.0, 4, 5) == pytest.approx(2.0)
    assert Recipe(**GIVEN).heat(50.0, 0, 1) == 50.0


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 0}, {"batch": 0}, {"lr": 0.0}, {"lr": float("nan")}, {"mask_lr": -1.0}, {"warmup": 1.0},
        {"warmup": -0.1}, {"penalty": -1.0}, {"penalty": float("inf")}, {"cool_to": 0.0},
    ],
)  # fmt: skip
def test_settings_out_of_range(changes: dict[str, Any]) -> None:
    (name,) = changes
    with pytest.raises(CausalError, match=name):
        Recipe(**{**GIVEN, **changes})


def _mean(h: Tensor, source: Tensor) -> Tensor:
    return (h + source) / 2


class Root(Intervention):
    """The slope of a square root at 0 is infinite."""

    needs = frozenset({"source"})

    def __init__(self) -> None:
        super().__init__()
        self.source = None
        self.weight = nn.Parameter(torch.zeros(()))

    def transform(self, h: Tensor, state: State, call: Call) -> Tensor:
        return h + state["weight"].sqrt() * self.paired(call)


def test_nothing_to_train_and_a_training_that_diverges() -> None:
    model, _, _ = planted.planted()
    data = planted.pairs(8, ["c"], seed=0)

    def trained(made: Any) -> Any:
        return train(StoredRuns(model, data, {"c": Edit(planted.SITE, made, "last")}), [made], Recipe(**GIVEN), False)

    with pytest.raises(CausalError, match="Function has no trainable parameters"):
        trained(Function(_mean, source=Source([[1]])))
    with pytest.raises(CausalError, match=r"diverged, and the last loss is nan; lower lr=0\.01"):
        trained(Root())
