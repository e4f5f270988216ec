"""ReFT-r1's joint loss and the probe: worked numbers, formulas, pads, and Edits that do not fit."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from tests.train.objectives.toy import SITES, ToyStep, agree, forward, top_add, trained
from torch.nn.functional import softplus

from inlay.errors import TrainError
from inlay.train.objectives import ProbeBCE, ReFTr1, outside_top, probe_bce


def test_what_lies_outside_the_top_by_hand() -> None:
    """H = (1,0),(2,1),(0,3),(-1,1), w (.6,.8), k 2: z = .6, 2, 2.4, .2, so (.6 + .2) / 4."""
    h = torch.tensor([[1.0, 0], [2, 1], [0, 3], [-1, 1]], dtype=torch.float64)
    z = (h @ torch.tensor([0.6, 0.8], dtype=torch.float64)).relu()[None]
    mask = torch.ones(1, 4, dtype=torch.bool)
    assert outside_top(z, mask, 2).item() == pytest.approx(0.2, abs=1e-12)
    assert outside_top(z, mask, 4).item() == outside_top(z, mask, 9).item() == 0.0, "fewer than k: all are inside"


def test_pads_are_in_no_top_and_in_no_mean() -> None:
    z = torch.tensor([[0.5, 3.0, 1.0, 2.0]], dtype=torch.float64)
    expected = outside_top(z, torch.ones(1, 4, dtype=torch.bool), 1)
    assert expected.item() == pytest.approx(3.5 / 4)
    junk = torch.full((1, 3), 50.0, dtype=torch.float64)
    for parts in ((z, junk), (junk, z)):
        padded = torch.cat(parts, 1).requires_grad_()
        mask = padded.detach() < 50
        got = outside_top(padded, mask, 1)
        (gradient,) = torch.autograd.grad(got.sum(), padded)
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
        assert gradient[~mask].eq(0).all()
        torch.testing.assert_close(gradient[mask], torch.tensor([0.25, 0, 0.25, 0.25], dtype=torch.float64))
    assert outside_top(z, torch.zeros(1, 4, dtype=torch.bool), 1).item() == 0.0, "a row without tokens"


def test_reft_r1_against_the_formula() -> None:
    step = ToyStep(trained(3), edit=top_add)
    tokens, mates, expected, sparse = [5, 5, 1], [2, 2, 1], [], []
    for i, row in enumerate(step.given):
        z = (forward(row.ids("chosen")[0])["before"] @ step.vector).relu()
        inside = set(z.topk(min(2, len(z))).indices.tolist())
        outside = sum((z[t] for t in range(len(z)) if t not in inside), torch.zeros(()).double()) / len(z)
        language = -step.logp(i, "chosen", step.factors()[i]) / tokens[i]
        sparse.append(0.5 * row.progress * outside / mates[i])
        expected.append(language + sparse[-1])
    assert max(one.item() for one in sparse) > 0.01
    agree(step, ReFTr1(sparsity=0.5)(step), expected)  # type: ignore[arg-type]


def test_k_is_the_edits_own_unless_given() -> None:
    vector = trained()
    own, given = ToyStep(vector, edit=top_add, k=2), ToyStep(vector, edit=top_add, k=1)
    strong = {"sparsity": 3.0}
    assert torch.equal(ReFTr1(**strong)(own), ReFTr1(k=2, **strong)(given))  # type: ignore[arg-type]
    assert not torch.equal(ReFTr1(**strong)(own), ReFTr1(**strong)(given))  # type: ignore[arg-type]


def test_edits_that_reft_r1_cannot_train() -> None:
    step = ToyStep(trained())
    step.parts = step.parts * 2
    with pytest.raises(TrainError, match="2 parts, and ReFT-r1 trains one"):
        ReFTr1()(step)  # type: ignore[arg-type]
    step = ToyStep(trained())
    step.parts[0].intervention = SimpleNamespace(banked=False, config=dict)
    with pytest.raises(TrainError, match="no top k of its own"):
        ReFTr1()(step)  # type: ignore[arg-type]
    step = ToyStep(trained())
    step.state = lambda part=0: {"basis": step.vector}  # type: ignore[method-assign,assignment]
    with pytest.raises(TrainError, match=r"ReFT-r1 trains a vector, and the intervention at resid_post.0 holds basis"):
        ReFTr1()(step)  # type: ignore[arg-type]


def test_settings() -> None:
    assert ReFTr1().sparsity == 0.005
    with pytest.raises(TrainError, match="sparsity=-1: give a number of at least 0"):
        ReFTr1(sparsity=-1)
    with pytest.raises(TrainError, match="k=0: give a number of at least 1"):
        ReFTr1(k=0)


def test_probe_bce_by_hand() -> None:
    logits = torch.tensor([[2.0, -1.0, 9.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    found = probe_bce(logits, mask, torch.tensor([1.0, 0.0]))
    expected = [(math.log1p(math.exp(-2)) + math.log1p(math.exp(1))) / 2, math.log(2)]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("tokens", [None, "response"])
def test_the_probe_against_the_formula(tokens: str | None) -> None:
    """It sees frozen states: the edit is not run."""
    step = ToyStep(trained())
    bias = torch.full((1,), 0.3, dtype=torch.float64, requires_grad=True)
    step.more = {"bias": bias.expand(step.size, 1, 1)}
    expected = []
    for row, mates in zip(step.given, [2, 2, 1], strict=True):
        ids, prompt = row.ids("chosen")
        h = forward(ids)[SITES[0]][prompt if tokens else 0 :]
        logits = h @ step.vector + bias
        expected.append(softplus(-logits if row.label else logits).mean() / mates)
    got = ProbeBCE(tokens)(step)  # type: ignore[arg-type]
    agree(step, got, expected)
    (a,), (b,) = (torch.autograd.grad(v, bias) for v in (got.sum(), torch.stack(expected).sum()))
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert not step.asked


def test_a_probe_needs_a_vector() -> None:
    step = ToyStep(trained())
    step.state = lambda part=0: {}  # type: ignore[method-assign]
    with pytest.raises(
        TrainError, match=r"a probe trains a vector, and the intervention at resid_post.0 holds nothing"
    ):
        ProbeBCE()(step)  # type: ignore[arg-type]
