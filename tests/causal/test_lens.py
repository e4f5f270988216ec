"""The logit lens against the model's own output, a hand-written final norm and head, and naive statistics."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from tests.interventions import tiny
from tests.model.families import FAMILIES, build
from torch import Tensor

import inlay
from inlay import Add, Edit
from inlay.causal import lens as module
from inlay.causal.lens import LensReading, logit_lens
from inlay.causal.tuned_lens import TunedLens
from inlay.errors import CausalError, SiteError

STATES = ["resid_pre", "resid_mid", "resid_post"]
every_model = pytest.mark.parametrize("name", tiny.FAMILIES)


@cache
def hf(name: str) -> Any:
    return tiny.FAMILIES[name]()


@cache
def model(name: str) -> inlay.Model:
    return inlay.load(hf(name), tokenizer=tiny.words())


def by_hand(name: str, row: list[int]) -> dict[str, Tensor]:
    """Log-probabilities [tokens, vocabulary] by Site, from the family's own modules and hooks on them."""
    m = hf(name)
    norm, blocks = (m.model.norm, m.model.layers) if name == "llama" else (m.transformer.ln_f, m.transformer.h)
    middle = "post_attention_layernorm" if name == "llama" else "ln_2"
    found: dict[str, Tensor] = {}

    def keep(site: str, h: Tensor) -> None:
        found[site] = m.lm_head(norm(h[0])).log_softmax(-1)

    def before(site: str) -> Any:
        return lambda _, args, kwargs: keep(site, args[0] if args else kwargs["hidden_states"])

    handles = []
    for layer, block in enumerate(blocks):
        handles.append(block.register_forward_pre_hook(before(f"resid_pre.{layer}"), with_kwargs=True))
        handles.append(
            block.get_submodule(middle).register_forward_pre_hook(before(f"resid_mid.{layer}"), with_kwargs=True)
        )
        handles.append(
            block.register_forward_hook(
                lambda _, __, out, site=f"resid_post.{layer}": keep(site, out[0] if isinstance(out, tuple) else out)
            )
        )
    with torch.no_grad():
        m(torch.tensor([row]), use_cache=False)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_the_last_layer_says_what_the_model_says(name: str) -> None:
    m = inlay.load(build(name))
    found = logit_lens(m, tiny.RAGGED, "resid_post.-1", tokens="last", answers=7, top=64)
    logits = torch.cat([tiny.plain(m.hf, [row])[:, -1] for row in tiny.RAGGED])
    expected = logits.log_softmax(-1)
    np.testing.assert_allclose(found.logprob.values[:, 0], expected[:, 7], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.top_prob.values[:, 0], expected.exp().sort(-1, descending=True)[0], atol=1e-6)
    assert (found.kl.values == 0).all()


@every_model
@pytest.mark.parametrize("state", STATES)
def test_every_state_goes_through_the_familys_norm_and_head(name: str, state: str) -> None:
    found = logit_lens(model(name), tiny.RAGGED, f"{state}.*", answers=["w7", "w8", "w9", "w10"], top=3)
    assert found.kl.dims == ("prompt", "token", "layer") and found.top.dims == ("prompt", "token", "layer", "place")
    for row, ids in enumerate(tiny.RAGGED):
        expected = by_hand(name, ids)
        final = expected["resid_post.2"]
        for layer in range(tiny.LAYERS):
            here = expected[f"{state}.{layer}"]
            at = {"prompt": row, "token": slice(0, len(ids) - 1), "layer": layer}
            close = {"rtol": 1e-4, "atol": 1e-5}
            np.testing.assert_allclose(found.logprob.sel(at), here[:, 7 + row], **close)
            np.testing.assert_allclose(found.entropy.sel(at), -(here.exp() * here).sum(-1), **close)
            kl = torch.nn.functional.kl_div(here, final, reduction="none", log_target=True).sum(-1)
            np.testing.assert_allclose(found.kl.sel(at), kl, **close)
            order = here.argsort(-1, descending=True)
            rank = (order == 7 + row).nonzero()[:, 1] + 1
            assert found.rank.sel(at).values.tolist() == rank.tolist()
            assert found.top.sel(at).values.tolist() == [[f"w{i}" for i in ids] for ids in order[:, :3].tolist()]
            np.testing.assert_allclose(found.top_prob.sel(at), here.exp().sort(-1, descending=True)[0][:, :3], **close)


@every_model
def test_a_row_is_read_in_a_batch_as_alone(name: str) -> None:
    together = logit_lens(model(name), tiny.RAGGED)
    for row, ids in enumerate(tiny.RAGGED):
        alone = logit_lens(model(name), [ids])
        for grid, one in zip(grids(together), grids(alone), strict=True):
            mine = grid.isel(prompt=row, token=slice(0, len(ids))).values
            if mine.dtype.kind == "U":
                assert (mine == one.isel(prompt=0).values).all()
            else:
                np.testing.assert_allclose(mine, one.isel(prompt=0).values, rtol=1e-4, atol=1e-5)
        behind = together.kl.isel(prompt=row, token=slice(len(ids), None)).values
        assert np.isnan(behind).all() and (together.top.isel(prompt=row, token=slice(len(ids), None)) == "").all()


def grids(reading: LensReading) -> list[Any]:
    return [reading.kl, reading.entropy, reading.logprob, reading.rank, reading.top, reading.top_prob]


def test_the_answer_is_the_models_own_where_none_is_given() -> None:
    found = logit_lens(model("llama"), tiny.RAGGED)
    last = found.rank.isel(layer=-1).values
    assert (last[~np.isnan(last)] == 1).all() and (found.rank.isel(layer=0).values > 1).any()
    likeliest = found.top_prob.isel(layer=-1, place=0).values
    np.testing.assert_allclose(np.exp(found.logprob.isel(layer=-1).values), likeliest, rtol=1e-6)


def test_an_answer_of_several_ids() -> None:
    both = logit_lens(model("llama"), tiny.RAGGED, tokens="last", answers=[[5, 9], [5], [9], [5, 9]])
    five, nine = (logit_lens(model("llama"), tiny.RAGGED, tokens="last", answers=i) for i in (5, 9))
    total = np.log(np.exp(five.logprob.values) + np.exp(nine.logprob.values))
    expected = np.stack([total[0], five.logprob.values[1], nine.logprob.values[2], total[3]])
    np.testing.assert_allclose(both.logprob.values, expected, rtol=1e-5)
    best = np.minimum(five.rank.values, nine.rank.values)
    assert (both.rank.values == np.stack([best[0], five.rank.values[1], nine.rank.values[2], best[3]])).all()


def test_positions_are_decoded_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = logit_lens(model("llama"), tiny.RAGGED, answers=5)
    monkeypatch.setattr(module, "AT_ONCE", 4)
    pieces = logit_lens(model("llama"), tiny.RAGGED, answers=5)
    for a, b in zip(grids(whole), grids(pieces), strict=True):
        if a.dtype.kind == "U":
            assert (a.values == b.values).all()
        else:
            np.testing.assert_allclose(a.values, b.values, rtol=1e-5, atol=1e-6)


def test_sites_of_several_names() -> None:
    found = logit_lens(model("llama"), tiny.RAGGED, ["resid_mid.1", "resid_post.*"], tokens="last")
    assert dict(found.kl.sizes) == {"prompt": 4, "component": 2, "layer": 3}
    middle = logit_lens(model("llama"), tiny.RAGGED, "resid_mid.1", tokens="last")
    assert (found.kl.sel(component="resid_mid", layer=1).values == middle.kl.sel(layer=1).values).all()
    assert np.isnan(found.kl.sel(component="resid_mid", layer=[0, 2])).all()
    assert not np.isnan(found.kl.sel(component="resid_post")).any()
    assert (found.top.sel(component="resid_mid", layer=[0, 2]) == "").all()


def test_under_an_edit_the_states_are_the_edited_ones() -> None:
    v = torch.randn(tiny.WIDTH)
    edit = Edit("resid_post.1", Add(v), tokens="last")
    found = logit_lens(model("llama"), tiny.EVEN, tokens="last", answers=5, edit=edit)
    m = hf("llama")
    for layer in range(tiny.LAYERS):
        seen = []

        def change(h: Tensor) -> Tensor:
            return torch.cat([h[:, :-1], h[:, -1:] + v], 1)

        with tiny.hook(m.model.layers[1], change), tiny.hook(m.model.layers[layer], lambda h, s=seen: s.append(h) or h):
            tiny.plain(m, tiny.EVEN)
        expected = m.lm_head(m.model.norm(seen[0][:, -1])).log_softmax(-1)[:, 5].detach()
        np.testing.assert_allclose(found.logprob.sel(layer=layer), expected, rtol=1e-5, atol=1e-5)


def test_the_picture_has_the_likeliest_words() -> None:
    found = logit_lens(model("llama"), tiny.RAGGED)
    figure = found.plot(prompt=1)
    words = [text.get_text() for text in figure.axes[0].texts]
    expected = found.top.isel(prompt=1, place=0).transpose("layer", "token").values.flatten()
    assert words == expected.tolist() and len(words) == 7 * tiny.LAYERS
    with pytest.raises(CausalError, match="the picture has tokens and layers"):
        logit_lens(model("llama"), tiny.RAGGED, tokens="last").plot()


def test_bad_arguments() -> None:
    m = model("llama")
    with pytest.raises(CausalError, match="top=0: name at least one token"):
        logit_lens(m, tiny.RAGGED, top=0)
    with pytest.raises(SiteError, match=r"attn_out\.0 is no state of the residual stream"):
        logit_lens(m, tiny.RAGGED, "attn_out.0")
    with pytest.raises(CausalError, match=r"the Edit's part at logits acts behind"):
        logit_lens(m, tiny.RAGGED, edit=Edit("logits", Add(torch.ones(tiny.VOCABULARY))))
    with pytest.raises(CausalError, match=r"the lens is of another Model.*TunedLens\.load"):
        logit_lens(m, tiny.RAGGED, lens=TunedLens(model("gpt2")))
    with pytest.raises(SiteError, match=r"no translator for resid_pre\.1; it has: resid_post\.0, resid_post\.1"):
        logit_lens(m, tiny.RAGGED, "resid_pre.1", lens=TunedLens(m))
