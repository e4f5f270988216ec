"""Pair losses: the numbers of the specification, the formulas in float64, and what carries no gradient."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from inlay.train.objectives import apo_zero, bipo, dpo, ipo, log_ratio, reps, reps_difference, simpo


def row(*values: float) -> list[Tensor]:
    return [torch.tensor([float(value)], dtype=torch.float64) for value in values]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def test_reps_by_hand() -> None:
    """beta = 15, D = 15/10 * -30 + 28/8; with the references swapped beta is 1."""
    rarer, likelier = row(-30, -28, -40, -25, 10, 8), row(-30, -28, -25, -40, 10, 8)
    assert reps_difference(*rarer).item() == -41.5
    assert reps(*rarer).item() == pytest.approx(41.5, abs=1e-12)
    assert reps_difference(*likelier).item() == 0.5
    assert reps(*likelier).item() == pytest.approx(0.474077, abs=5e-7)


def test_the_beta_of_reps_carries_no_gradient() -> None:
    given_ = [value.requires_grad_() for value in row(-30, -28, -40, -25, 10, 8)]
    gradients = torch.autograd.grad(reps(*given_).sum(), given_[:4], allow_unused=True)
    assert gradients[2] is None and gradients[3] is None
    slope = -(1 - sigmoid(-41.5))  # of -log sigmoid at D
    assert gradients[0] is not None and gradients[1] is not None
    assert gradients[0].item() == pytest.approx(slope * 15 / 10, rel=1e-12)
    assert gradients[1].item() == pytest.approx(-slope / 8, rel=1e-12)


def test_bipo_by_hand() -> None:
    """D = (-30 + 28) - (-40 + 25) = 13."""
    values = row(-30, -28, -40, -25)
    assert log_ratio(*values).item() == 13
    assert bipo(*values).item() == pytest.approx(2.26e-6, abs=5e-9)


logps = st.floats(-60, -0.1)


@given(logps, logps, logps, logps, st.integers(1, 40), st.integers(1, 40), st.floats(0.05, 3))
def test_each_formula(w: float, lo: float, rw: float, rl: float, nw: int, nl: int, b: float) -> None:
    def softplus(x: float) -> float:
        return max(x, 0) + math.log1p(math.exp(-abs(x)))

    d = (w - lo) - (rw - rl)
    difference = max(rl - rw, 1) / nw * w - lo / nl
    expected = {
        reps(*row(w, lo, rw, rl, nw, nl)): softplus(-difference),
        dpo(*row(w, lo, rw, rl), b): softplus(-b * d),
        bipo(*row(w, lo, rw, rl), b): softplus(-b * d),
        ipo(*row(w, lo, rw, rl), b): (d - 1 / (2 * b)) ** 2,
        simpo(*row(w, lo, nw, nl), b, 0.7): softplus(-(b * w / nw - b * lo / nl - 0.7)),
        apo_zero(*row(w, lo, rw, rl), b): 1 - sigmoid(b * (w - rw)) + sigmoid(b * (lo - rl)),
    }
    for got, value in expected.items():
        assert got.item() == pytest.approx(value, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("loss", [reps, dpo, ipo, simpo, apo_zero])
def test_far_log_probs_stay_finite(loss: object) -> None:
    """A response of thousands of tokens: no overflow in float32, neither in the loss nor in its gradient."""
    big, small = torch.tensor([-1e4], requires_grad=True), torch.tensor([-1.0], requires_grad=True)
    more = (torch.tensor([9.0]), torch.tensor([2.0])) if loss is simpo else (torch.tensor([-5.0]), torch.tensor([-7.0]))
    if loss is reps:
        more = (*more, torch.tensor([9.0]), torch.tensor([2.0]))
    for pair in ((big, small), (small, big)):
        value = loss(*pair, *more)  # type: ignore[operator]
        gradients = torch.autograd.grad(value.sum(), pair)
        assert torch.isfinite(value).all() and all(torch.isfinite(g).all() for g in gradients)
