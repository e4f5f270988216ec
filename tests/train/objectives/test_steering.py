"""RePS: both directions, both length modes, random strengths, against the formula example by example."""

from __future__ import annotations

import pytest
import torch
from tests.train.objectives.toy import ROWS, ToyStep, add, agree, null_out, trained
from torch import Tensor
from torch.nn.functional import softplus

from inlay.errors import TrainError
from inlay.train.objectives import RePS


def by_hand(step: ToyStep, i: int, length: str, shared: bool) -> Tensor:
    a = [step.factors(0 if shared else which)[i] for which in range(4)]
    counts = {}
    for side in ("chosen", "rejected"):
        ids, prompt = step.given[i].ids(side)
        counts[side] = len(ids) - (prompt if length == "response" else 0)
    ref = {side: float(step.logp(i, side)) for side in counts}

    def loss(win: str, lose: str, a_win: Tensor, a_lose: Tensor, null: bool) -> Tensor:
        beta = max(ref[lose] - ref[win], 1)
        d = beta / counts[win] * step.logp(i, win, a_win, null) - step.logp(i, lose, a_lose, null) / counts[lose]
        return softplus(-d)

    both = loss("chosen", "rejected", a[0], a[1], False) + loss("rejected", "chosen", a[3], a[2], True)
    mates = sum(row.concept == step.given[i].concept for row in step.given)
    return both / (2 * mates)


@pytest.mark.parametrize("null", [None, null_out], ids=["negative", "null-out"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("length", ["response", "sequence"])
def test_against_the_formula(length: str, shared: bool, null: object) -> None:
    step = ToyStep(trained(), edit=add, null=null)  # type: ignore[arg-type]
    got = RePS(length=length, shared_factor=shared)(step)  # type: ignore[arg-type]
    agree(step, got, [by_hand(step, i, length, shared) for i in range(step.size)])


def test_the_length_modes_differ_on_the_same_log_probs() -> None:
    step = ToyStep(trained())
    response, sequence = (RePS(length=length)(step) for length in ("response", "sequence"))  # type: ignore[arg-type]
    assert ((response - sequence).abs() > 1e-3).all()


def test_what_it_needs() -> None:
    assert RePS.sides == RePS.references == ("chosen", "rejected")
    step = ToyStep(trained())
    RePS()(step)  # type: ignore[arg-type]
    assert step.asked == [(side, null) for null in (False, True) for side in ("chosen", "rejected")]


def test_a_vector_of_zeros_gives_a_finite_loss_and_gradient() -> None:
    step = ToyStep(torch.zeros(5, dtype=torch.float64, requires_grad=True), ROWS, null=null_out)
    loss = RePS()(step).sum()  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(loss, step.vector)
    assert torch.isfinite(loss) and torch.isfinite(gradient).all() and gradient.abs().max() > 0


def test_an_unknown_length_is_refused() -> None:
    with pytest.raises(TrainError, match=r"length='tokens': 'response' or 'sequence'"):
        RePS(length="tokens")
