"""Preference objectives on a Step, against their formulas example by example."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.train.objectives.toy import ToyStep, agree, trained
from torch import Tensor
from torch.nn.functional import softplus

from inlay.errors import TrainError
from inlay.train.objectives import DPO, IPO, APOZero, BiPO, SimPO


def ratios(step: ToyStep, i: int, sign: float = 1.0) -> tuple[Tensor, Tensor]:
    """LP - LPref of the chosen and of the rejected response."""
    a = sign * step.factors()[i]
    chosen, rejected = (step.logp(i, side, a) - step.logp(i, side) for side in ("chosen", "rejected"))
    return chosen, rejected


def dpo(step: ToyStep, i: int) -> Tensor:
    chosen, rejected = ratios(step, i)
    return softplus(-0.3 * (chosen - rejected))


def ipo(step: ToyStep, i: int) -> Tensor:
    chosen, rejected = ratios(step, i)
    return (chosen - rejected - 1 / 0.6) ** 2


def apo_zero(step: ToyStep, i: int) -> Tensor:
    chosen, rejected = ratios(step, i)
    return 1 - (0.3 * chosen).sigmoid() + (0.3 * rejected).sigmoid()


def bipo(step: ToyStep, i: int) -> Tensor:
    (chosen, rejected), (chosen_off, rejected_off) = ratios(step, i), ratios(step, i, -1)
    return (softplus(-0.3 * (chosen - rejected)) + softplus(-0.3 * (rejected_off - chosen_off))) / 2


def simpo(step: ToyStep, i: int) -> Tensor:
    a, one = step.factors()[i], step.given[i]
    chosen, rejected = step.logp(i, "chosen", a), step.logp(i, "rejected", a)
    return softplus(-(0.3 * chosen / len(one.chosen) - 0.3 * rejected / len(one.rejected) - 0.5))


CASES = [
    (DPO(0.3), dpo),
    (IPO(0.3), ipo),
    (APOZero(0.3), apo_zero),
    (BiPO(0.3), bipo),
    (SimPO(0.3, 0.5), simpo),
]


@pytest.mark.parametrize(("objective", "formula"), CASES, ids=[type(one).__name__ for one, _ in CASES])
def test_against_the_formula(objective: Callable[..., Tensor], formula: Callable[[ToyStep, int], Tensor]) -> None:
    step = ToyStep(trained())
    mates = [2, 2, 1]
    agree(step, objective(step), [formula(step, i) / mates[i] for i in range(step.size)])


def test_only_simpo_needs_no_reference() -> None:
    assert all(kind.references == ("chosen", "rejected") for kind in (DPO, IPO, APOZero, BiPO))
    assert not hasattr(SimPO, "references")


@pytest.mark.parametrize("kind", [DPO, IPO, APOZero, BiPO, SimPO])
@pytest.mark.parametrize("beta", [0, -1.0, float("nan"), "much"])
def test_beta_is_above_zero(kind: type, beta: object) -> None:
    with pytest.raises(TrainError, match=r"beta=.*: give a number above 0"):
        kind(beta=beta)


def test_gamma_is_not_negative() -> None:
    with pytest.raises(TrainError, match=r"gamma=-1: give a number of at least 0"):
        SimPO(gamma=-1)
