"""`joint=True`: the selected positions, or heads, are one state."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.interventions import tiny
from tests.interventions.tiny import EVEN, OTHER, RAGGED, WIDTH
from torch import Tensor, nn

from inlay import Add, Edit, Function, Mean, Project, Source, Swap
from inlay.errors import EditError, SiteError, TokensError

BASIS = torch.linalg.qr(torch.randn(2 * WIDTH, 5, generator=torch.Generator().manual_seed(3)))[0]


def _by_hand(hf: Any, rows: Any, layer: int, at: list[list[int]], change: Any) -> Tensor:
    """Logits with positions `at` of every row changed together by a bare hook."""

    def act(h: Tensor) -> Tensor:
        new = h.clone()
        for row, places in enumerate(at):
            new[row, places] = change(h[row, places].flatten()).reshape(len(places), -1)
        return new

    return tiny.hooked(hf, rows, layer, act)


def test_two_tokens_are_one_state() -> None:
    model = tiny.model()
    edit = Edit("resid_post.1", Project(BASIS), tokens="first+last", joint=True)
    want = _by_hand(model.hf, RAGGED, 1, [[0, len(r) - 1] for r in RAGGED], lambda h: h - (h @ BASIS) @ BASIS.T)
    out = model.forward(RAGGED, edit=edit)
    tiny.same_where_real(out.logits, want, RAGGED, atol=1e-5, rtol=1e-5)
    assert out.touched == [8]


def test_a_source_is_joined_the_same_way() -> None:
    model = tiny.model()
    places, dims = [1, 3], [0, WIDTH + 1, 2 * WIDTH - 1]
    source = tiny.states(model.hf, OTHER, 1)
    rows = iter(range(4))

    def change(h: Tensor) -> Tensor:
        new = h.clone()
        new[dims] = source[next(rows), places].flatten()[dims]
        return new

    want = _by_hand(model.hf, EVEN, 1, [places] * 4, change)
    edit = Edit("resid_post.1", Swap(OTHER, dims=dims), tokens=places, joint=True)
    assert torch.equal(model.forward(EVEN, edit=edit).logits, want)


def test_every_position_and_a_mean() -> None:
    model = tiny.model()
    mean = torch.randn(WIDTH)
    joint = Edit("resid_post.1", Mean(Source(OTHER)), joint=True)
    apart = Edit("resid_post.1", Mean(Source(OTHER)))
    assert torch.equal(model.forward(EVEN, edit=joint).logits, model.forward(EVEN, edit=apart).logits)
    with pytest.raises(SiteError, match="4 joint positions"):
        model.forward(EVEN, edit=Edit("resid_post.1", Add(mean), joint=True))


def test_a_function_sees_one_wide_state_and_gradients_reach_it() -> None:
    model = tiny.model()
    seen: list[torch.Size] = []
    weight = nn.Parameter(torch.zeros(2 * WIDTH))

    def f(h: Tensor) -> Tensor:
        seen.append(h.shape)
        return h + weight

    out = model.forward(EVEN, edit=Edit("resid_post.1", Function(f), tokens=[0, 2], joint=True), read="resid_post.1")
    assert seen == [torch.Size([4, 1, 2 * WIDTH])]
    assert out.acts is not None
    (grad,) = torch.autograd.grad(out.acts["resid_post.1"].sum(), weight)
    assert torch.equal(grad, torch.full((2 * WIDTH,), 4.0))


def test_rows_that_select_unequally_are_refused() -> None:
    model = tiny.model()
    edit = Edit("resid_post.1", Project(BASIS), tokens="prompt", joint=True)
    with pytest.raises(TokensError, match=r"row 0 selects 5 of 7"):
        model.forward(RAGGED, edit=edit)


def test_it_is_saved_and_shown(tmp_path: Any) -> None:
    model = tiny.model()
    edit = Edit("resid_post.1", Project(BASIS), tokens="first+last", joint=True)
    edit.save(tmp_path / "edit")
    again = Edit.from_pretrained(tmp_path / "edit")
    assert "joint=True" in repr(again)
    assert torch.equal(model.forward(EVEN, edit=again).logits, model.forward(EVEN, edit=edit).logits)


def test_a_condition_must_decide_for_the_row() -> None:
    from inlay import When

    model = tiny.model()
    test = When("resid_post.0", torch.ones(WIDTH), above=0.0)
    with pytest.raises(EditError, match="give it tokens="):
        model.forward(EVEN, edit=Edit("resid_post.1", Project(BASIS), tokens="first+last", joint=True, when=test))
