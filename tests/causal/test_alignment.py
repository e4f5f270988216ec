"""What an Alignment gives: Edits for any source, bases, and angles to a known subspace."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests.interventions import tiny
from tests.interventions.tiny import WIDTH

import inlay
from inlay import Boundless, Edit, Function, LowRank, Mask, Rotate, Source
from inlay.causal import Alignment, GroupAccuracy, InterchangeAccuracy
from inlay.errors import CausalError

ACCURACY = InterchangeAccuracy((GroupAccuracy(("x",), 8, 0.75, None, 0.125, 1.0, 0.25, {}),))


def alignment(**interventions: Any) -> Alignment:
    edits = {name: Edit("resid_post.1", made, "last") for name, made in interventions.items()}
    return Alignment(edits, ACCURACY, {"loss": [2.0, 1.0]}, {"rows": 8})


def test_edits_exchange_the_variable() -> None:
    model, made = tiny.model(), LowRank(None, WIDTH, 3)
    found = alignment(x=made)
    assert found.intervention() is made and found.intervention("x") is made
    want = model.forward(tiny.EVEN, edit=Edit("resid_post.1", made.with_source(Source(tiny.OTHER)), "last"))
    for source in (tiny.OTHER, Source(tiny.OTHER), {"x": tiny.OTHER}, {"input_ids": torch.tensor(tiny.OTHER)}):
        got = model.forward(tiny.EVEN, edit=found.edit(source))
        assert torch.equal(got.logits, want.logits)
    assert made.source is None


def test_several_variables_from_several_sources() -> None:
    model, whole = tiny.model(), Rotate(None, WIDTH, [2, 3])
    found = alignment(x=whole.part(0), y=whole.part(1))
    both = model.forward(tiny.EVEN, edit=found.edit({"y": tiny.OTHER, "x": [[1, 2]]}))
    one = Edit("resid_post.1", whole.part(1, Source(tiny.OTHER)), "last")
    two = Edit("resid_post.1", whole.part(0, Source([[1, 2]])), "last")
    assert torch.equal(both.logits, model.forward(tiny.EVEN, edit=one + two).logits)
    alone = model.forward(tiny.EVEN, edit=found.edit({"y": tiny.OTHER}))
    assert torch.equal(alone.logits, model.forward(tiny.EVEN, edit=one).logits)
    assert [found.basis(name).shape for name in "xy"] == [(WIDTH, 2), (WIDTH, 3)]


def test_angles_to_a_known_subspace() -> None:
    basis = torch.linalg.qr(torch.randn(WIDTH, WIDTH)).Q
    found = alignment(x=LowRank.of(basis[:, :3]))
    turned = torch.stack([basis[:, 0], math.cos(0.4) * basis[:, 1] + math.sin(0.4) * basis[:, 9]], 1)
    torch.testing.assert_close(
        found.principal_angles(turned), torch.tensor([0.0, 0.4], dtype=torch.float64), rtol=0, atol=1e-5
    )
    mask = Mask(None, WIDTH)
    mask.theta.data[[4, 7]] = 1.0
    torch.testing.assert_close(alignment(x=mask).basis(), torch.eye(WIDTH)[:, [4, 7]])
    assert alignment(x=mask).principal_angles(torch.eye(WIDTH)[:, :5]).tolist() == pytest.approx([0, math.pi / 2])


def test_what_is_not_there() -> None:
    found = alignment(x=LowRank(None, WIDTH, 2), y=LowRank(None, WIDTH, 2))
    for call in (found.intervention, found.basis, lambda: found.edit(tiny.OTHER), lambda: found.edit({"z": [[1]]})):
        with pytest.raises(CausalError, match="name one of x, y"):
            call()
    with pytest.raises(CausalError, match="no source: give one for some of x, y"):
        found.edit({})
    with pytest.raises(CausalError, match="Function exchanges no subspace"):
        alignment(x=Function(torch.relu)).basis()
    empty = Boundless(None, WIDTH, temperature=0.1)
    empty.boundary.data.fill_(0.0)
    assert alignment(x=empty).basis().shape == (WIDTH, 0)
    with pytest.raises(CausalError, match="keeps nothing"):
        alignment(x=empty).principal_angles(torch.eye(WIDTH))
    with pytest.raises(CausalError, match="width 32 and 5"):
        alignment(x=LowRank(None, WIDTH, 2)).principal_angles(torch.eye(5))


def test_it_says_what_it_is() -> None:
    first, head, line = repr(alignment(x=LowRank(None, WIDTH, 2))).splitlines()
    assert first == "Alignment(x: LowRank at resid_post.1, tokens='last')"
    assert " ".join(head.split()) == "set rows IIA no swap full swap random" and line.split()[:3] == ["x", "8", "0.750"]
    assert inlay.causal.Alignment is Alignment
