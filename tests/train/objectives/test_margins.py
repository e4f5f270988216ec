"""SPLIT and PRISM: the worked number, the formula, and where the margin pulls."""

from __future__ import annotations

import pytest
import torch
from tests.train.objectives.toy import ToyStep, agree, trained

from inlay.errors import TrainError
from inlay.train.objectives import Prism, Split, margin


def test_by_hand() -> None:
    """1.2 + .6 * 1.5 + 4 * (.5 - .3) = 2.9."""
    one = [torch.tensor([value], dtype=torch.float64) for value in (1.2, 1.5)]
    assert margin(*one).item() == pytest.approx(2.9, abs=1e-12)
    assert margin(*one, pull=5.0).item() == pytest.approx(3.1, abs=1e-12)


def test_beyond_the_gap_nothing_pulls() -> None:
    """Both are then likely for their own sake alone: the gradients are 1 and the weight."""
    chosen, rejected = (torch.tensor([value], requires_grad=True) for value in (1.0, 1.6))
    gradients = torch.autograd.grad(margin(chosen, rejected).sum(), (chosen, rejected))
    assert [g.item() for g in gradients] == pytest.approx([1.0, 0.6])
    chosen, rejected = (torch.tensor([value], requires_grad=True) for value in (1.0, 1.4))
    gradients = torch.autograd.grad(margin(chosen, rejected).sum(), (chosen, rejected))
    assert [g.item() for g in gradients] == pytest.approx([1.0 + 4, 0.6 - 4])


@pytest.mark.parametrize(("objective", "pull"), [(Split(), 4.0), (Prism(), 5.0)])
def test_against_the_formula(objective: Split, pull: float) -> None:
    step = ToyStep(trained())
    expected = []
    for i, mates in enumerate([2, 2, 1]):
        a, row = step.factors()[i], step.given[i]
        plus = -step.logp(i, "chosen", a) / len(row.chosen)
        minus = -step.logp(i, "rejected", a) / len(row.rejected)
        lack = 0.5 - (minus - plus)
        expected.append((plus + 0.6 * minus + (pull * lack if lack > 0 else 0 * lack)) / mates)
    agree(step, objective(step), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("setting", ["weight", "gap", "pull"])
def test_settings_are_not_negative(setting: str) -> None:
    with pytest.raises(TrainError, match=f"{setting}=-0.1: give a number of at least 0"):
        Split(**{setting: -0.1})
