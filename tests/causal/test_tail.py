"""The tail on any states is the model's own: norm, head, soft-cap and scale; nothing of a run is left."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from tests.interventions import tiny
from tests.model import test_two_stacks
from tests.model.families import FAMILIES, build
from torch import Tensor, nn

import inlay
from inlay import Add, Edit
from inlay.causal import TunedLens, logit_attribution, logit_lens
from inlay.causal.tail import check_edit, last_site, residual_sites, run_tail, tail_logits
from inlay.errors import CausalError, ModelError, SiteError
from inlay.model import patch


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    yield
    assert patch.standing() == 0


@pytest.mark.parametrize("name", FAMILIES)
def test_the_last_states_give_the_models_own_logits(name: str) -> None:
    model = inlay.load(build(name))
    with torch.no_grad():
        out = model.forward(tiny.EVEN, read=last_site(model))
        states = out.acts[last_site(model)].flatten(0, 1)
        torch.testing.assert_close(tail_logits(model, states), out.logits.flatten(0, 1), rtol=1e-6, atol=1e-6)


def test_a_soft_cap_and_scales_are_part_of_it() -> None:
    for name, change in {
        "gemma2": lambda x: 30.0 * torch.tanh(x / 30.0),
        "cohere2": lambda x: 0.0625 * x,
        "granite": lambda x: x / 2.0,
    }.items():
        hf = build(name)
        states = 9 * torch.randn(5, 48)
        expected = change(hf.lm_head(hf.model.norm(states)))
        torch.testing.assert_close(tail_logits(inlay.load(hf), states), expected, rtol=1e-6, atol=1e-6)


def test_states_share_nothing() -> None:
    model, states = tiny.model(), torch.randn(6, tiny.WIDTH)
    together = tail_logits(model, states)
    alone = torch.cat([tail_logits(model, one) for one in states.split(1)])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)


def test_gradients_reach_the_states() -> None:
    hf = tiny.llama()
    states = torch.randn(3, tiny.WIDTH, requires_grad=True)
    (found,) = torch.autograd.grad(tail_logits(inlay.load(hf), states)[:, 5].sum(), states)
    (expected,) = torch.autograd.grad(hf.lm_head(hf.model.norm(states))[:, 5].sum(), states)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_sites_of_the_tail_can_be_read_and_edited() -> None:
    hf = tiny.gpt2()
    states, v = torch.randn(3, tiny.WIDTH), torch.randn(tiny.WIDTH)
    out = run_tail(inlay.load(hf), states, edit=Edit("final_norm", Add(v)), read="final_norm")
    normed = hf.transformer.ln_f(states) + v
    torch.testing.assert_close(out.acts["final_norm"][:, 0], normed)
    torch.testing.assert_close(out.logits[:, 0], hf.lm_head(normed))


class Plain(nn.Module):
    """A model of which only what blocks give is mapped."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Embedding(9, 4), nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.head = nn.Linear(4, 9)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids)
        for block in self.blocks:
            h = h + block(h)
        return self.head(h)


def test_a_map_without_a_stream_is_an_error() -> None:
    model = inlay.load(Plain(), sites={"resid_post": "blocks.{layer}:out"})
    with pytest.raises(SiteError, match="Plain has no Site 'resid_pre'"):
        run_tail(model, torch.randn(2, 4))


def test_an_encoder_alone_has_a_tail() -> None:
    hf = test_two_stacks.bert()
    states = torch.randn(3, tiny.WIDTH)
    torch.testing.assert_close(tail_logits(inlay.load(hf), states), hf.cls(states))


def test_an_encoder_with_a_decoder_is_refused() -> None:
    model = inlay.load(test_two_stacks.t5())
    for call in (logit_lens, TunedLens.fit, partial(logit_attribution, answers=3)):
        with pytest.raises(
            ModelError, match="a tail starts from one stack of blocks, and T5ForConditionalGeneration has"
        ):
            call(model, [[5, 6, 7]])


def test_residual_sites() -> None:
    model = tiny.model()
    found = residual_sites(model, ["resid_pre.*", "resid_mid.1", "resid_post.-1"])
    assert [str(site) for site in found] == ["resid_pre.0", "resid_pre.1", "resid_pre.2", "resid_mid.1", "resid_post.2"]
    with pytest.raises(SiteError, match=r"mlp_out\.1 is no state of the residual stream.*logit_attribution"):
        residual_sites(model, ["resid_pre.0", "mlp_out.1"])


def test_an_edit_behind_the_states_is_an_error() -> None:
    model, v = tiny.model(), torch.randn(tiny.WIDTH)
    check_edit(model, None)
    check_edit(model, Edit("resid_post.*", Add(v)))
    with pytest.raises(CausalError, match="the Edit's part at final_norm acts behind the states"):
        check_edit(model, Edit("resid_post.1", Add(v)) + Edit("final_norm", Add(v)))
