"""merge_into: merged weights give the edited model's logits without a hook, and everything else is refused with why."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.interventions import tiny
from tests.interventions.tiny import INNER, OTHER, RAGGED, WIDTH
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

import inlay
from inlay import (
    RED,
    Ablate,
    Add,
    Affine,
    Angular,
    Bank,
    Clamp,
    Conceptor,
    ConsReFT,
    DiReFT,
    Edit,
    Function,
    LobiReFT,
    LoRA,
    LoReFT,
    Mean,
    NoReFT,
    NullOut,
    OrthoDiReFT,
    Project,
    Replace,
    Scale,
    SetAlong,
    Steer,
    Swap,
    When,
    Zero,
    merge_into,
)
from inlay.errors import EditError
from inlay.interventions import merge
from inlay.interventions.trained_families import lora

pytestmark = pytest.mark.filterwarnings("ignore:.*merged copy has a bias")


def _v(seed: int = 0, width: int = WIDTH) -> Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))


def _m(rank: int, seed: int = 0) -> Tensor:
    return torch.randn(WIDTH, rank, generator=torch.Generator().manual_seed(seed))


def _moved(made: Any) -> Any:
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in made.parameters():
            tensor.add_(0.2 * torch.randn(tensor.shape, generator=draws))
    return made


KINDS: dict[str, Callable[[], Any]] = {
    "add": lambda: Add(_v()),
    "add dims": lambda: Add(_v(), dims=[1, 7]),
    "steer": lambda: Steer(_v(), 0.5, dropout=0.3),
    "affine": lambda: Affine(torch.eye(WIDTH) + 0.1 * _m(WIDTH), _v()),
    "affine scale": lambda: Affine(1 + 0.3 * _v(), _v(1)),
    "red": lambda: _moved(RED(WIDTH)),
    "scale": lambda: Scale(2.0),
    "zero": lambda: Zero(dims=slice(0, 9)),
    "replace": lambda: Replace(_v()),
    "mean": lambda: Mean(_v()),
    "ablate": lambda: Ablate(_v()),
    "project": lambda: Project(_m(3)),
    "keep": lambda: Project(_m(9), keep=True),
    "conceptor": lambda: Conceptor.fit(_m(WIDTH), aperture=0.5, beta=0.7),
    "set along": lambda: SetAlong(_v()),
    "loreft": lambda: _moved(LoReFT(WIDTH, 4, dropout=0.3)),
    "loreft group": lambda: LoReFT(WIDTH, groups={"a": 2, "b": 3}).part("b"),
    "direft": lambda: DiReFT(WIDTH, 4),
    "noreft": lambda: NoReFT(WIDTH, 4),
    "ortho direft": lambda: OrthoDiReFT(WIDTH, 4),
    "consreft": lambda: ConsReFT(WIDTH, 4),
    "lobireft": lambda: LobiReFT(WIDTH, 4),
}


def _same(model: inlay.Model, edit: Edit, by: float) -> torch.nn.Module:
    """The merged copy, checked beside the edited model on rows that merge_into did not see."""
    edit.eval()
    before = {name: t.clone() for name, t in model.hf.state_dict().items()}
    merged = merge_into(model, edit)
    with torch.no_grad():
        want, plain = model.forward(RAGGED, edit=edit).logits, model.forward(RAGGED).logits
        got = merged(**tiny.padded(RAGGED)).logits
    for index, row in enumerate(RAGGED):
        torch.testing.assert_close(got[index, : len(row)], want[index, : len(row)], rtol=0, atol=by)
    assert float((want - plain).abs().max()) > 100 * by
    assert all(torch.equal(before[name], t) for name, t in model.hf.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in merged.modules())
    return merged


def test_every_kind_that_is_merged_is_here() -> None:
    assert {type(make()) for make in KINDS.values()} | {LoRA} == set(merge.AFFINE)


@pytest.mark.parametrize("strength", [None, -0.6])
@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_merged_weights_give_the_edited_models_logits(family: str, make: Callable[[], Any], strength: Any) -> None:
    model = inlay.load(tiny.FAMILIES[family](dtype=torch.float64))
    _same(model, Edit("mlp_out.1", make(), strength=strength), 1e-6)  # Llama's norms are computed in float32


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_heads_and_fused_projections_are_merged_in_their_columns(family: str) -> None:
    model = inlay.load(tiny.FAMILIES[family](dtype=torch.float64))
    edit = Edit("q.1.h2", Zero()) + Edit("v.0", Add(_v(0, model.sites().width(inlay.Site.parse("v.0")))))
    merged = _same(model, edit, 1e-6)
    path = "model.layers.1.self_attn.k_proj.weight" if family == "llama" else "transformer.h.1.mlp.c_fc.weight"
    assert torch.equal(merged.state_dict()[path], model.hf.state_dict()[path])


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("site", ["resid_post.1", "resid_pre.2", "resid_mid.1", "resid_post.*"])
def test_what_is_added_to_the_stream_is_added_to_a_bias(family: str, site: str) -> None:
    _same(inlay.load(tiny.FAMILIES[family](dtype=torch.float64)), Edit(site, Add(_v()), strength=1.5), 1e-6)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_lora_is_merged_into_the_weight_alone(family: str) -> None:
    path = {"llama": "model.layers.1.mlp.down_proj", "gpt2": "transformer.h.1.attn.c_attn"}[family]
    widths = {"llama": (INNER, WIDTH), "gpt2": (WIDTH, 3 * WIDTH)}[family]
    model = inlay.load(tiny.FAMILIES[family](dtype=torch.float64))
    made = _moved(LoRA(*widths, 3, alpha=6.0))
    merged = _same(model, Edit(f"module:{path}:out", made, strength=0.5), 1e-6)
    weight, old = (each.get_submodule(path).weight for each in (merged, model.hf))
    if family == "llama":
        weight, old = weight.T, old.T
    want = lora(old, torch.eye(widths[0], dtype=torch.float64), made.down.detach(), made.up.detach(), 6 / 3 * 0.5)
    torch.testing.assert_close(weight, want, rtol=0, atol=1e-6)


def test_several_parts_on_one_module_are_merged_in_the_order_in_which_they_act() -> None:
    model = tiny.model(dtype=torch.float64)
    o_proj = "module:model.layers.1.self_attn.o_proj:out"
    edit = Edit("resid_mid.1", Add(_v())) + Edit("attn_out.1", Affine(torch.eye(WIDTH) + 0.1 * _m(WIDTH), _v(2)))
    edit = edit + Edit(o_proj, Scale(3.0)) + Edit("attn_out.1", Ablate(_v(1))) + Edit("mlp_out.0", Add(_v(3)))
    _same(model, edit, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_keeps_the_models_dtype_and_modes(dtype: torch.dtype) -> None:
    model = tiny.model(dtype=dtype)
    model.hf.train()
    model.hf.model.layers[0].eval()
    modes = [module.training for module in model.hf.modules()]
    merged = merge_into(model, Edit("attn_out.1", LoReFT(WIDTH, 4)))
    assert all(t.dtype == dtype for t in merged.state_dict().values() if t.is_floating_point())
    assert [m.training for m in merged.modules()] == modes == [m.training for m in model.hf.modules()]
    assert type(merged) is type(model.hf)


def test_a_bias_that_the_family_has_none_of_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="from_pretrained of the family does not read"):
        merge_into(tiny.model(), Edit("resid_post.1", Add(_v())))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        merge_into(tiny.model(), Edit("mlp_out.1", Ablate(_v())))
        merge_into(inlay.load(tiny.gpt2()), Edit("resid_post.1", Add(_v())))


def test_merged_it_generates_the_same() -> None:
    model, edit = tiny.model(), Edit("resid_post.0", Add(3 * _v()))
    merged = inlay.load(merge_into(model, edit))
    options = {"max_new_tokens": 8, "do_sample": False}
    assert merged.generate(RAGGED, **options) == model.generate(RAGGED, edit=edit, **options)
    assert merged.generate(RAGGED, **options) != model.generate(RAGGED, **options)


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (lambda: Edit("mlp_out.1", LoReFT(WIDTH, 4), tokens="first4+last4"), r"acts at tokens='first4\+last4'"),
        (lambda: Edit("mlp_out.1", Add(_v()), tokens="prompt"), "weights act at every token"),
        (lambda: Edit("mlp_out.1", LoReFT(WIDTH, 4, activation="relu")), "activation='relu' is not affine"),
        (lambda: Edit("mlp_out.1", Bank([Add(_v())])), r"bank.item\(row\)"),
        (lambda: Edit("mlp_out.1", Swap(OTHER)), "takes the states of another run"),
        (lambda: Edit("mlp_out.1", Mean(OTHER)), "takes the states of another run"),
        (lambda: Edit("mlp_out.1", Add(_v()), when=When("resid_post.0", _v(), above=0.0)), "acts under a condition"),
        (lambda: Edit("mlp_out.1", Clamp(_v(), 1.0, 2.0)), "not affine in the state"),
        (lambda: Edit("mlp_out.1", Angular(_v(), _v(1), 30.0)), "not affine"),
        (lambda: Edit("mlp_out.1", NullOut(_v())), "not affine"),
        (lambda: Edit("mlp_out.1", Function(torch.tanh)), "not affine"),
        (lambda: Edit("resid_post.1", Scale(2.0)), "resid_post.1 is a sum.*Add, Steer, LobiReFT"),
        (lambda: Edit("resid_pre.0", Add(_v())), r"no mlp_out of a block is added last to resid_pre\.0"),
        (lambda: Edit("z.1", Zero()), "z.1 is not the output of a module"),
        (lambda: Edit("pattern.1", Scale(0.5)), "not the output"),
        (lambda: Edit("mlp_in.1", Scale(0.5)), "not the output"),
        (lambda: Edit("final_norm", Scale(0.5)), r"no linear module of model\.norm"),
        (lambda: Edit("mlp_out.1", LoRA(WIDTH, WIDTH, 2)), "the input of model.layers.1.mlp is not that of"),
    ],
)
def test_what_no_weights_can_do_is_refused(edit: Callable[[], Edit], match: str) -> None:
    with pytest.raises(EditError, match=match):
        merge_into(tiny.model(), edit())


def test_tied_weights_are_not_merged_into() -> None:
    with pytest.raises(EditError, match=r"those of lm_head are tied to transformer.wte, lm_head"):
        merge_into(inlay.load(tiny.gpt2()), Edit("logits", Scale(0.5)))
    _same(tiny.model(dtype=torch.float64), Edit("logits", Scale(0.5)), 1e-6)


def test_a_norm_behind_the_module_is_found_out() -> None:
    torch.manual_seed(0)
    shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    config = Gemma2Config(**shape, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3)
    model = inlay.load(Gemma2ForCausalLM(config).eval())
    for site in ("mlp_out.1", "resid_post.0", "attn_out.1"):
        with pytest.raises(EditError, match=r"no linear module of .*gives its output as it is"):
            merge_into(model, Edit(site, Add(_v())))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merge_into(model, Edit("module:model.layers.1.mlp.down_proj:out", Add(_v())))


def test_a_family_without_the_site_is_refused() -> None:
    torch.manual_seed(0)
    shape = {"vocab_size": 64, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = inlay.load(OPTForCausalLM(OPTConfig(**shape, word_embed_proj_dim=32, do_layer_norm_before=False)).eval())
    with pytest.raises(EditError, match=r"no mlp_out of a block is added last to resid_post\.0"):
        merge_into(model, Edit("resid_post.0", Add(_v())))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_weights_that_do_something_else_are_found_out_by_a_run(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(merge.ADDS, "resid_post", ("attn_out", 0))  # the MLP would see it, too
    with pytest.raises(EditError, match="the merged weights give logits that are up to"):
        merge_into(inlay.load(tiny.FAMILIES[family]()), Edit("resid_post.1", Add(_v())))


def test_what_is_added_to_the_stream_is_in_the_unit_of_what_the_family_scales() -> None:
    torch.manual_seed(0)
    shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = GraniteConfig(**shape, num_attention_heads=4, num_key_value_heads=2, residual_multiplier=0.22)
    model = inlay.load(GraniteForCausalLM(config).eval())
    assert model.sites().place(inlay.Site.parse("mlp_out.1")).scale == 0.22
    _same(model, Edit("resid_post.*", Add(_v())) + Edit("resid_mid.1", Steer(_v(1))), 1e-5)
    _same(model, Edit("mlp_out.1", ConsReFT(WIDTH, 4), strength=20.0), 1e-5)
