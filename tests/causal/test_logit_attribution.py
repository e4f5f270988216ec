"""Direct logit attribution: complete in every family, and each part equal to a sum written out by hand."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from tests.interventions import tiny
from tests.model.families import FAMILIES, HEADS, LAYERS, build
from torch import Tensor, nn

import inlay
from inlay import Add, Edit, Zero
from inlay.causal.logit_attribution import accumulated, logit_attribution
from inlay.errors import CausalError, SiteError
from inlay.model import patch

YES, NO = 7, 9
COMPLETE = {"rtol": 1e-5, "atol": 1e-5}
ENDS = ["norm_bias", "head_bias"]
COMPONENTS = {
    "component": ["embed", "attn_out", "mlp_out", *ENDS],
    "head": ["embed", *(f"h{i}" for i in range(HEADS)), "attn_bias", "mlp_out", *ENDS],
    "layer": ["embed", "block", *ENDS],
}


@cache
def family(name: str) -> inlay.Model:
    return inlay.load(build(name))


def difference(hf: Any) -> Tensor:
    """YES minus NO of what the head gives, before any scale or soft-cap: [rows, tokens] of the ragged rows."""
    kept: list[Tensor] = []
    with tiny.hook(hf.get_output_embeddings(), lambda x: kept.append(x) or x):
        tiny.plain(hf, tiny.RAGGED)
    return kept[0][..., YES] - kept[0][..., NO]


@cache
def wanted(name: str) -> Tensor:
    return difference(family(name).hf)


@pytest.mark.parametrize("by", COMPONENTS)
@pytest.mark.parametrize("name", FAMILIES)
def test_the_contributions_add_up_to_the_logit_difference(name: str, by: str) -> None:
    if "attn_out" not in FAMILIES[name].places:
        with pytest.raises(SiteError, match="has no Site 'attn_out'"):
            logit_attribution(family(name), tiny.RAGGED, YES, NO, by=by)
        pytest.skip("its blocks norm the stream itself, so that the last state is no sum")
    if (name, by) == ("bitnet", "head"):
        with pytest.raises(SiteError, match=r"z\.0: through module '.*attn_sub_norm' the heads do not add up"):
            logit_attribution(family(name), tiny.RAGGED, YES, NO, by=by)
        pytest.skip("a norm lies between z and the out projection")
    found = logit_attribution(family(name), tiny.RAGGED, YES, NO, "all", by=by)
    assert found.dims == ("prompt", "token", "layer", "component")
    assert found["component"].values.tolist() == COMPONENTS[by] and found.sizes["layer"] == LAYERS
    for row, ids in enumerate(tiny.RAGGED):
        total = found.sel(prompt=row).sum(["layer", "component"]).values[: len(ids)]
        np.testing.assert_allclose(total, wanted(name)[row, : len(ids)], **COMPLETE)
        assert np.isnan(found.sel(prompt=row).values[len(ids) :]).all()
    assert patch.standing() == 0


def states(hf: Any, row: list[int]) -> dict[str, Tensor]:
    """What every part of a tiny Llama or GPT-2 gives at the last token of a row, by bare hooks."""
    found: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, side: str = "out") -> Any:
        if side == "in":
            return module.register_forward_pre_hook(
                lambda _, args, kwargs: found.update({name: (args[0] if args else kwargs["hidden_states"])[0, -1]}),
                with_kwargs=True,
            )
        return module.register_forward_hook(
            lambda _, __, out: found.update({name: (out[0] if isinstance(out, tuple) else out)[0, -1]})
        )

    handles = []
    for layer in range(tiny.LAYERS):
        block = tiny.block(hf, layer)
        attention = block.self_attn if hasattr(block, "self_attn") else block.attn
        project = attention.o_proj if hasattr(attention, "o_proj") else attention.c_proj
        handles += [keep(f"resid_pre.{layer}", block, "in"), keep(f"resid_post.{layer}", block)]
        handles += [keep(f"attn_out.{layer}", attention), keep(f"mlp_out.{layer}", block.mlp)]
        handles += [keep(f"z.{layer}", project, "in")]
    tiny.plain(hf, [row])
    for handle in handles:
        handle.remove()
    return found


def randomised(hf: Any) -> Any:
    """Biases and norm weights away from 0 and 1."""
    with torch.no_grad():
        for parameter in hf.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.4 * torch.randn_like(parameter))
    return hf


def worth(hf: Any, last: Tensor, part: Tensor) -> Tensor:
    """Elhage et al.'s linearised norm and the head's rows, written out: what a part adds to YES - NO."""
    u = hf.lm_head.weight[YES] - hf.lm_head.weight[NO]
    if hasattr(hf, "transformer"):
        norm = hf.transformer.ln_f
        return ((part - part.mean()) / (last.var(unbiased=False) + norm.eps).sqrt() * norm.weight) @ u
    norm = hf.model.norm
    return (part / (last.square().mean() + norm.variance_epsilon).sqrt() * norm.weight) @ u


def close(found: Any, expected: Tensor) -> None:
    np.testing.assert_allclose(float(found), expected.item(), **COMPLETE)


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_components_heads_and_layers_by_hand(name: str) -> None:
    hf = randomised(tiny.FAMILIES[name]())
    model = inlay.load(hf)
    by = {kind: logit_attribution(model, tiny.RAGGED, YES, NO, by=kind) for kind in COMPONENTS}
    for row, ids in enumerate(tiny.RAGGED):
        seen = states(hf, ids)
        last = seen[f"resid_post.{tiny.LAYERS - 1}"]
        component, head, layer = (by[kind].sel(prompt=row) for kind in ("component", "head", "layer"))
        close(component.sel(layer=0, component="embed"), worth(hf, last, seen["resid_pre.0"]))
        for i in range(tiny.LAYERS):
            for part in ("attn_out", "mlp_out"):
                close(component.sel(layer=i, component=part), worth(hf, last, seen[f"{part}.{i}"]))
            both = seen[f"attn_out.{i}"] + seen[f"mlp_out.{i}"]
            close(layer.sel(layer=i, component="block"), worth(hf, last, both))
            block = tiny.block(hf, i)
            if name == "llama":
                weight, bias = block.self_attn.o_proj.weight.T, torch.zeros(tiny.WIDTH)
            else:
                weight, bias = block.attn.c_proj.weight, block.attn.c_proj.bias
            z = seen[f"z.{i}"].unflatten(0, (tiny.HEADS, -1))
            for h in range(tiny.HEADS):
                added = z[h] @ weight.unflatten(0, (tiny.HEADS, -1))[h]
                close(head.sel(layer=i, component=f"h{h}"), worth(hf, last, added))
            close(head.sel(layer=i, component="attn_bias"), worth(hf, last, bias))
        u = hf.lm_head.weight[YES] - hf.lm_head.weight[NO]
        norm_bias = hf.transformer.ln_f.bias @ u if name == "gpt2" else torch.zeros(())
        close(component.sel(layer=tiny.LAYERS - 1, component="norm_bias"), norm_bias)


def test_heads_behind_a_post_norm_by_hand() -> None:
    """Gemma 2: the norm behind attention is held too, and so is 1 + its weight."""
    hf = build("gemma2")
    found = logit_attribution(inlay.load(hf), [tiny.RAGGED[0]], YES, NO, by="head").sel(prompt=0)
    seen: dict[str, Tensor] = {}
    block = hf.model.layers[1]
    handles = [
        block.self_attn.o_proj.register_forward_hook(
            lambda _, args, out: seen.update(z=args[0][0, -1], out=out[0, -1])
        ),
        hf.model.norm.register_forward_pre_hook(lambda _, args: seen.update(last=args[0][0, -1])),
    ]
    tiny.plain(hf, [tiny.RAGGED[0]])
    for handle in handles:
        handle.remove()
    u = hf.lm_head.weight[YES] - hf.lm_head.weight[NO]
    for h in range(HEADS):
        added = seen["z"].unflatten(0, (HEADS, -1))[h] @ block.self_attn.o_proj.weight.T.unflatten(0, (HEADS, -1))[h]
        post = block.post_attention_layernorm
        added = added / (seen["out"].square().mean() + post.eps).sqrt() * (1 + post.weight)
        added = added / (seen["last"].square().mean() + hf.model.norm.eps).sqrt() * (1 + hf.model.norm.weight)
        close(found.sel(layer=1, component=f"h{h}"), added @ u)


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_accumulated_is_what_the_stream_has_at_each_layer(name: str) -> None:
    hf = randomised(tiny.FAMILIES[name]())
    found = {by: accumulated(logit_attribution(inlay.load(hf), tiny.RAGGED, YES, NO, by=by)) for by in COMPONENTS}
    whole = difference(hf)
    for row, ids in enumerate(tiny.RAGGED):
        seen = states(hf, ids)
        last = seen[f"resid_post.{tiny.LAYERS - 1}"]
        bias = whole[row, len(ids) - 1] - worth(hf, last, last)
        for by in COMPONENTS:
            assert found[by].dims == ("prompt", "layer")
            for i in range(tiny.LAYERS):
                close(found[by].sel(prompt=row, layer=i), worth(hf, last, seen[f"resid_post.{i}"]) + bias)


def test_accumulated_leaves_what_a_short_row_has_not_empty() -> None:
    whole = logit_attribution(tiny.model(), tiny.RAGGED, YES, NO, "all")
    found = accumulated(whole)
    assert found.dims == ("prompt", "token", "layer")
    assert (np.isnan(found.values) == np.isnan(whole.sel(component="mlp_out").values)).all()


def test_a_head_bias_is_a_component() -> None:
    model = family("phi")
    found = logit_attribution(model, tiny.RAGGED, YES, NO)
    bias = model.hf.lm_head.bias
    np.testing.assert_allclose(
        found.sel(layer=LAYERS - 1, component="head_bias"), float(bias[YES] - bias[NO]), rtol=1e-6
    )


def test_the_difference_is_answers_minus_foils() -> None:
    model = tiny.model()
    yes, no = (logit_attribution(model, tiny.RAGGED, one) for one in ([1, 2, 3, 4], 9))
    both = logit_attribution(model, tiny.RAGGED, [1, 2, 3, 4], 9)
    np.testing.assert_allclose(both.values, (yes - no).values, **COMPLETE)
    assert yes.attrs["long_name"] == "contribution to the logit"
    assert both.attrs["long_name"] == "contribution to the logit difference"


def test_answers_of_several_ids_are_means() -> None:
    model = tiny.model()
    one, two, three = (logit_attribution(model, tiny.EVEN, i, 9).values for i in (1, 2, 3))
    found = logit_attribution(model, tiny.EVEN, [[1, 2], [3], [1, 2, 3], [2]], 9).values
    expected = np.stack([(one[0] + two[0]) / 2, three[1], (one[2] + two[2] + three[2]) / 3, two[3]])
    np.testing.assert_allclose(found, expected, **COMPLETE)


def test_one_position_a_row_has_no_token_dimension() -> None:
    model = tiny.model()
    last, every = (logit_attribution(model, tiny.RAGGED, YES, NO, tokens) for tokens in ("last", "all"))
    assert last.dims == ("prompt", "layer", "component")
    for row, ids in enumerate(tiny.RAGGED):
        np.testing.assert_allclose(last.sel(prompt=row), every.sel(prompt=row, token=len(ids) - 1), **COMPLETE)


def test_under_an_edit_of_a_component() -> None:
    hf = tiny.llama()
    model, edit = inlay.load(hf), Edit("mlp_out.1", Zero())
    found = logit_attribution(model, tiny.EVEN, YES, NO, edit=edit)
    assert (found.sel(layer=1, component="mlp_out").values == 0).all()
    with tiny.hook(hf.model.layers[1].mlp, torch.zeros_like):
        logits = tiny.plain(hf, tiny.EVEN)[:, -1]
    np.testing.assert_allclose(found.sum(["layer", "component"]), logits[:, YES] - logits[:, NO], **COMPLETE)


def test_what_else_writes_to_the_stream_is_an_error() -> None:
    edit = Edit("resid_post.1", Add(torch.ones(tiny.WIDTH)))
    with pytest.raises(SiteError, match=r"miss resid_post\.2 by up to 1\.0e\+00: something else writes"):
        logit_attribution(tiny.model(), tiny.EVEN, YES, NO, edit=edit)
    with pytest.raises(CausalError, match="the Edit's part at final_norm acts behind the states"):
        logit_attribution(tiny.model(), tiny.EVEN, YES, NO, edit=Edit("final_norm", Zero()))


def test_half_precision_adds_up_to_its_own_rounding() -> None:
    hf = tiny.llama(dtype=torch.bfloat16)
    for by in COMPONENTS:
        found = logit_attribution(inlay.load(hf), tiny.EVEN, YES, NO, by=by)
        logits = tiny.plain(hf, tiny.EVEN)[:, -1].float()
        total = found.sum(["layer", "component"]).values
        size = np.abs(found).sum(["layer", "component"]).values
        assert (np.abs(total - (logits[:, YES] - logits[:, NO]).numpy()) < 0.02 * size).all()


def test_another_split_is_an_error() -> None:
    with pytest.raises(CausalError, match="by='neuron': give one of 'component', 'head', 'layer'"):
        logit_attribution(tiny.model(), tiny.EVEN, YES, NO, by="neuron")


class Squashing(nn.Module):
    """A head that is not linear."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, tiny.VOCABULARY))
        self.first = nn.Linear(tiny.WIDTH, 16)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.first(x)) @ self.weight


def test_a_head_that_is_not_linear_is_refused_by_name() -> None:
    hf = tiny.llama()
    hf.lm_head = Squashing()
    with pytest.raises(SiteError, match=r"the logits at module 'lm_head' are not linear in what 'model\.norm' gives"):
        logit_attribution(inlay.load(hf), tiny.EVEN, YES, NO)


def test_heads_that_are_not_known_are_an_error() -> None:
    hf = tiny.llama()
    given = {
        "resid_pre": "model.layers.{layer}:in",
        "resid_post": "model.layers.{layer}:out",
        "attn_out": "model.layers.{layer}.self_attn:out",
        "mlp_out": "model.layers.{layer}.mlp:out",
        "z": "model.layers.{layer}.self_attn.o_proj:in",
        "final_norm": "model.norm:out",
        "logits": "lm_head:out",
    }
    model = inlay.load(hf, sites=given)
    whole = logit_attribution(model, torch.tensor(tiny.EVEN), YES, NO)
    np.testing.assert_allclose(whole.values, logit_attribution(inlay.load(hf), tiny.EVEN, YES, NO).values, **COMPLETE)
    with pytest.raises(SiteError, match=r"z\.0: how many heads this Site has is not known"):
        logit_attribution(model, torch.tensor(tiny.EVEN), YES, NO, by="head")


@pytest.mark.gpu
def test_on_a_gpu_it_is_the_same() -> None:
    for by in COMPONENTS:
        here, there = (
            logit_attribution(inlay.load(tiny.gpt2().to(device)), tiny.RAGGED, YES, NO, "all", by=by)
            for device in ("cpu", "cuda")
        )
        np.testing.assert_allclose(there.values, here.values, rtol=1e-3, atol=1e-3)
