"""Base and sources in one forward give what a forward for each gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.interventions import tiny
from tests.interventions.tiny import EVEN, OTHER, RAGGED, WIDTH
from tests.model import families
from torch import nn

import inlay
from inlay import Add, Bank, Edit, Function, Mean, Source, Swap
from inlay.errors import EditError, InputError, TokensError

LONGER = [[*row, 9, 10] for row in OTHER]


def _same(model: inlay.Model, prompts: Any, edit: Edit, **more: Any) -> inlay.model.model.Output:
    """Assert that both ways agree, and that the second took one forward."""
    apart = model.forward(prompts, edit=edit, **more)
    with tiny.forwards(model.hf) as count:
        together = model.forward(prompts, edit=edit, worlds=True, **more)
    assert count[0] == 1
    tiny.same_where_real(together.logits, apart.logits, prompts, atol=1e-5, rtol=1e-5)
    assert together.touched == apart.touched
    return together


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "edit",
    [
        Edit("resid_post.1", Swap(OTHER), tokens="last"),
        Edit("resid_mid.1", Swap(Source(OTHER, site="resid_pre.1")), tokens=1),
        Edit("z.1.h2", Swap(Source(OTHER, tokens=0)), tokens="last"),
        Edit("q_rot.1", Swap(OTHER), tokens=2),
        Edit("mlp_act.0", Swap(OTHER, dims=[0, 5]), tokens="first2"),
        Edit("resid_pre.2", Swap(Source(OTHER, site="resid_post.0")), tokens=1),
        Edit("attn_out.0", Swap(Source([LONGER[0]], tokens=5)), tokens="last"),
        Edit("resid_post.1", Swap(LONGER), tokens="last") + Edit("resid_post.0", Swap(OTHER), tokens=0),
    ],
    ids=str,
)
def test_one_forward_gives_what_two_give(family: str, edit: Edit) -> None:
    model = inlay.load(tiny.FAMILIES[family]())
    _same(model, EVEN, edit)
    assert not inlay.model.patch.standing()


def test_ragged_rows_and_what_is_read() -> None:
    model = tiny.model()
    source = Source(RAGGED[::-1], tokens="last")
    edit = Edit("resid_post.0", Swap(source), tokens="last") + Edit("resid_post.1", Swap(source), tokens=0)
    apart = model.forward(RAGGED, edit=edit, read="resid_post.*", tokens="all").acts
    together = _same(model, RAGGED, edit, read="resid_post.*", tokens="all").acts
    assert apart is not None and together is not None
    for site in apart:
        assert torch.allclose(apart[site], together[site], atol=1e-5)


def test_serial_sources_and_one_that_two_take_from() -> None:
    model = tiny.model()
    first = Source(OTHER)
    second = Source(LONGER, edit=Edit("resid_post.0", Swap(first), tokens=1))
    serial = Edit("resid_post.1", Swap(second), tokens=2)
    _same(model, EVEN, serial)
    _same(model, EVEN, serial + Edit("resid_post.2", Swap(first), tokens=3))
    _same(model, EVEN, Edit("resid_post.2", Swap(first), tokens=3) + serial)


def test_other_parts_go_on_as_they_were() -> None:
    model = tiny.model()
    v = torch.randn(WIDTH)
    stored = model.read(OTHER, "resid_post.0", tokens=2)
    bank = Bank([Add(v), Add(-v)])
    edit = Edit("resid_post.1", Swap(OTHER), tokens="last") + Edit("resid_post.0", bank, tokens=0)
    _same(model, EVEN, edit + Edit("resid_post.0", Swap(Source(stored)), tokens=2), rows=[1, 0, 2, 1], strength=0.5)
    apart = model.forward(EVEN, edit=Edit("resid_post.1", Mean(OTHER))).logits
    assert torch.equal(model.forward(EVEN, edit=Edit("resid_post.1", Mean(OTHER)), worlds=True).logits, apart)


def test_the_loss_is_the_bases_own() -> None:
    model = tiny.model()
    edit = Edit("resid_post.1", Swap(LONGER), tokens="last")
    assert torch.allclose(
        model.forward(EVEN, edit=edit, loss=True, worlds=True).loss, model.forward(EVEN, edit=edit, loss=True).loss
    )


@pytest.mark.parametrize("grad", [False, True])
def test_gradients_flow_through_a_source_where_it_says_so(grad: bool) -> None:
    model = tiny.model()
    found = []
    for worlds in (False, True):
        v = nn.Parameter(torch.randn(WIDTH, generator=torch.Generator().manual_seed(0)))
        source = Source(OTHER, edit=Edit("resid_post.0", Add(v)), grad=grad)
        out = model.forward(EVEN, edit=Edit("resid_post.1", Swap(source), tokens=1), worlds=worlds)
        (slope,) = torch.autograd.grad(out.logits.square().mean(), v, allow_unused=True)
        found.append(slope)
    if grad:
        assert torch.allclose(found[0], found[1], atol=1e-5) and bool(found[0].any())
    else:
        assert all(slope is None or not slope.any() for slope in found)


@pytest.mark.parametrize("name", ["mixtral", "olmo", "gpt_neox", "gemma2"])
def test_routers_flat_and_fused_tensors(name: str) -> None:
    hf = families.build(name)
    model = inlay.load(hf)
    sites = [
        s for s in ("router.1", "v.1", "mlp_out.1", "k_rot.1", "resid_mid.1") if s.split(".")[0] in model.sites().places
    ]
    ids = [[1, 2, 3, 4], [5, 6, 7, 8]]
    for site in sites:
        source = Source(ids[::-1], site="resid_pre.1" if site == "resid_mid.1" else None)
        edit = Edit(site, Swap(source), tokens="last")
        apart = model.forward(ids, edit=edit).logits
        assert torch.allclose(model.forward(ids, edit=edit, worlds=True).logits, apart, atol=1e-5, rtol=1e-4), site


def test_what_it_cannot_do_is_said() -> None:
    model = tiny.model()
    above = Edit("resid_post.0", Swap(Source(OTHER, site="resid_post.2")), tokens="last")
    with pytest.raises(EditError, match="leave worlds= out"):
        model.forward(EVEN, edit=above, worlds=True)
    with pytest.raises(InputError, match="cache"):
        model.forward(EVEN, edit=above, worlds=True, use_cache=True)
    with pytest.raises(TokensError, match="row 0 selects 1 positions"):
        model.forward(EVEN, edit=Edit("resid_post.0", Swap(Source(OTHER, tokens=[0, 1])), tokens=1), worlds=True)
    assert not inlay.model.patch.standing()


def test_a_function_may_take_a_live_source() -> None:
    model = tiny.model()
    _same(model, EVEN, Edit("resid_post.1", Function(_halfway, source=OTHER), tokens=[1, 2]))


def _halfway(h: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    return (h + source) / 2
