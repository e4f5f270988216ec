"""The map of Sites: what each family has and lacks, that its parts add up, and that finding it leaves no trace."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as t
from tests.model.families import FAMILIES, GROUPED, IDS, LAYERS, WIDTH, build, randomize
from tests.model.sites_by_hand import batch, forward, listen
from torch import Tensor, nn

import inlay
from inlay import Add, Edit, Scale, Zero
from inlay.errors import ModelError, SiteError
from inlay.model.discover import discover
from inlay.model.sites import GLOBAL, LAYERED

INPUTS = batch(8, 8)
every_family = pytest.mark.parametrize("family", FAMILIES)
MOE = ("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss")


def found(hf: Any) -> Any:
    return discover(hf, hf.config.get_text_config().model_type, hf.config.get_text_config())


# -- what a family has -----------------------------------------------------------------------------------------------


@every_family
def test_a_family_has_the_sites_of_its_row_and_no_others(family: str) -> None:
    row, sites = FAMILIES[family], inlay.load(build(family)).sites()
    assert set(sites.places) == set(row.sites)
    assert set(sites.lacks) == {*LAYERED, *GLOBAL} - set(row.sites)
    assert all(sites.lacks.values())
    for name in row.sites:
        assert tuple(sites.places[name]) == row.layers_of(name), name


@every_family
def test_heads_and_widths_are_those_of_real_tensors(family: str) -> None:
    row, hf = FAMILIES[family], build(family)
    sites, heard = found(hf), listen(hf, row, INPUTS)
    for name in row.sites:
        for layer in row.layers_of(name):
            place = sites.places[name][layer]
            assert place.heads == row.heads_of(name), name
            assert place.width == (-1 if name == "pattern" else heard.sites[name, layer].shape[-1]), name
            if place.heads and name != "pattern":
                assert place.width // place.heads == row.size, name


@every_family
def test_blocks_and_decoder_are_the_modules_of_the_row(family: str) -> None:
    row, hf = FAMILIES[family], build(family)
    sites = found(hf)
    assert sites.layers == LAYERS
    assert sites.blocks == tuple(row.where("resid_post", i)[0] for i in range(LAYERS))
    assert sites.decoder == sites.blocks[0].rsplit(".", 2)[0]
    assert sites.family == hf.config.model_type


@every_family
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_every_dtype_has_the_same_map(family: str, dtype: torch.dtype) -> None:
    if dtype == torch.float64 and family in MOE:
        pytest.skip("torch's grouped matrix product takes no float64")
    hf = build(family)
    assert found(copy.deepcopy(hf).to(dtype)).places == found(hf).places


@every_family
@pytest.mark.parametrize("part", ["attention", "mlp", "both"])
def test_parts_switched_off_by_zero_weights_are_found_all_the_same(family: str, part: str) -> None:
    hf = build(family)
    last = {"attention": ("o_proj", "out_proj", "attn.c_proj", "self_attention.dense", "attention.dense", "attn.dense")}
    last["mlp"] = (
        "mlp.down_proj",
        "mlp.c_proj",
        "fc2",
        "fc_out",
        "dense_4h_to_h",
        "ffn.down_proj",
        "experts",
        "expert",
    )
    chosen = last["attention"] + last["mlp"] if part == "both" else last[part]
    planted = copy.deepcopy(hf)
    count = 0
    for path, module in planted.named_modules():
        if path.endswith(chosen):
            for parameter in module.parameters():
                parameter.zero_()
                count += 1
    assert count >= LAYERS * (2 if part == "both" else 1)
    assert found(planted).places == found(hf).places


def test_a_block_whose_branches_are_switched_off_at_their_ends() -> None:
    """Attention off by its projection, the MLP by its norm's weight: the norm gives zeros too, and is not attention."""
    hf = build("llama")
    planted = copy.deepcopy(hf)
    for block in planted.model.layers:
        block.self_attn.o_proj.weight.zero_()
        block.post_attention_layernorm.weight.zero_()
    assert found(planted).places == found(hf).places


# -- the parts add up ------------------------------------------------------------------------------------------------


@every_family
def test_the_stream_is_the_sum_of_its_parts(family: str) -> None:
    """resid_pre + attn_out + mlp_out = resid_post, with resid_mid between them where the block is not parallel."""
    row, m = FAMILIES[family], inlay.load(build(family))
    if "attn_out" not in row.sites:
        assert family == "opt_post_norm"
        return
    assert ("resid_mid" in row.sites) == (not row.parallel)
    acts = m.read(INPUTS, [f"{name}.*" for name in ("resid_pre", "attn_out", "mlp_out", "resid_post")])
    mids = m.read(INPUTS, "resid_mid.*") if not row.parallel else {}
    for layer in range(LAYERS):
        pre, attention, mlp, post = (
            acts[f"{name}.{layer}"].double() for name in ("resid_pre", "attn_out", "mlp_out", "resid_post")
        )
        atol = 4 * torch.finfo(torch.float32).eps * float(post.abs().max())
        torch.testing.assert_close(pre + row.scale * (attention + mlp), post, rtol=0, atol=atol)
        if mids:
            torch.testing.assert_close(
                pre + row.scale * attention, mids[f"resid_mid.{layer}"].double(), rtol=0, atol=atol
            )
        if layer:
            assert torch.equal(acts[f"resid_pre.{layer}"], acts[f"resid_post.{layer - 1}"])


# -- no trace --------------------------------------------------------------------------------------------------------


def traces(hf: nn.Module) -> dict[str, Any]:
    """Everything about a model that is its owner's, as values that can be compared."""
    config = getattr(hf, "config", None)
    return {
        "modes": {name: module.training for name, module in hf.named_modules()},
        "attributes": {name: list(module.__dict__) for name, module in hf.named_modules()},
        "hooks": {
            (name, kind): list(module.__dict__[kind].items())
            for name, module in hf.named_modules()
            for kind in module.__dict__
            if "hooks" in kind and isinstance(module.__dict__[kind], dict)
        },
        "identity": {name: id(p) for name, p in (*hf.named_parameters(), *hf.named_buffers())},
        "asks": {name: p.requires_grad for name, p in hf.named_parameters()},
        "gradients": {name: p.grad for name, p in hf.named_parameters()},
        "config": config.to_dict() if config is not None else None,
        "attention": getattr(config, "_attn_implementation", None),
        "random": torch.get_rng_state().tolist(),
    }


def values(hf: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in (*hf.named_parameters(), *hf.named_buffers())}


@every_family
def test_loading_leaves_a_model_as_it_was(family: str) -> None:
    hf = build(family, attention=None)
    generation = hf.generation_config.to_dict()
    before, weights, logits = traces(hf), values(hf), forward(hf, INPUTS).logits
    m = inlay.load(hf)
    assert m.hf is hf
    assert traces(hf) == before
    assert hf.generation_config.to_dict() == generation
    assert weights.keys() == values(hf).keys()
    assert all(torch.equal(p, values(hf)[name]) for name, p in weights.items())
    assert torch.equal(forward(hf, INPUTS).logits, logits)


def training_gpt2() -> Any:
    """In train mode with dropout, one part in eval mode, some weights frozen, a gradient at hand, and hooks."""
    torch.manual_seed(0)
    hf = t.AutoModelForCausalLM.from_config(
        t.GPT2Config(**IDS, n_embd=WIDTH, n_layer=3, n_head=4, vocab_size=64, resid_pdrop=0.5, attn_pdrop=0.5)
    )
    randomize(hf)
    hf.train()
    hf.transformer.h[1].eval()
    hf.transformer.h[2].mlp.dropout.eval()
    hf.transformer.wte.requires_grad_(False)
    hf(INPUTS["input_ids"], labels=INPUTS["input_ids"]).loss.backward()
    return hf


def test_loading_leaves_a_model_in_training_as_it_was() -> None:
    hf = training_gpt2()
    calls: list[str] = []
    hf.transformer.h[0].register_forward_hook(lambda *_: calls.append("block"))
    hf.transformer.h[1].attn.register_forward_pre_hook(lambda *_, **__: calls.append("attention"), with_kwargs=True)
    hf.lm_head.register_full_backward_hook(lambda *_: calls.append("backward"))
    before, weights = traces(hf), values(hf)
    sites = inlay.load(hf).sites()
    assert sites.places == found(copy.deepcopy(hf).eval()).places
    assert traces(hf) == before
    assert all(torch.equal(p, values(hf)[name]) for name, p in weights.items())
    calls.clear()
    hf(INPUTS["input_ids"], labels=INPUTS["input_ids"]).loss.backward()
    assert calls == ["block", "attention", "backward"]


def test_a_failed_search_leaves_a_model_as_it_was() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
            self.layers[0].eval()

        def forward(self, ids: Tensor) -> Tensor:
            self.layers[0](torch.randn(1, 2, 4))
            raise ValueError("the third wire is loose")

    module = Fails()
    before = traces(module)
    with pytest.raises(ModelError, match=r"the third wire is loose.*example="):
        inlay.load(module)
    before["random"] = traces(module)["random"]  # drawn by the module itself
    assert traces(module) == before


@pytest.mark.parametrize("path", ["model.layers.1", "model.layers.1.self_attn", "model.layers.1.mlp", "model.layers.0"])
def test_hooks_of_the_user_that_change_values_do_not_hide_sites(path: str) -> None:
    hf = build("llama")
    expected = found(hf).places
    v = torch.randn(WIDTH)

    def steer(_: nn.Module, __: Any, output: Any) -> Any:
        return (output[0] + v, *output[1:]) if isinstance(output, tuple) else output + v

    hf.get_submodule(path).register_forward_hook(steer)
    assert inlay.load(hf).sites().places == expected


# -- asking for a Site that is not there -----------------------------------------------------------------------------


@every_family
def test_a_site_that_a_family_lacks_names_those_that_it_has(family: str) -> None:
    row, m = FAMILIES[family], inlay.load(build(family))
    for name in sorted({*LAYERED, *GLOBAL} - set(row.sites)):
        site = name if name in GLOBAL else f"{name}.1"
        for ask in (
            lambda s: m.read(INPUTS, s),
            lambda s: m.forward(INPUTS, read=s),
            lambda s: m.edited(Edit(s, Scale(0.5))),
        ):
            with pytest.raises(SiteError, match=f"{m.sites().family} has no Site '{name}'") as caught:
                ask(site)
            assert all(have in str(caught.value) for have in row.sites)
    for name in sorted(set(LAYERED) - set(row.sites)):
        with pytest.raises(SiteError, match=f"has no Site '{name}'"):
            m.read(INPUTS, f"{name}.*")


def test_a_site_that_one_layer_lacks_names_the_layers_that_have_it() -> None:
    m = inlay.load(build("qwen2_moe"))
    with pytest.raises(SiteError, match=r"mlp_act\.1: layer 1 of qwen2_moe has no 'mlp_act'; .*have one: 0, 2"):
        m.read(INPUTS, "mlp_act.1")
    with pytest.raises(SiteError, match=r"router\.-1: layer 2 .*have one: 1|router\.2: layer 2 .*have one: 1"):
        m.edited(Edit("router.-1", Scale(0.5)))
    assert list(m.read(INPUTS, ["mlp_act.*", "router.*"])) == ["mlp_act.0", "mlp_act.2", "router.1"]


@pytest.mark.parametrize("layer", [LAYERS, LAYERS + 40, -LAYERS - 1])
def test_a_layer_out_of_range(layer: int) -> None:
    m = inlay.load(build("llama"))
    with pytest.raises(SiteError, match=f"layer {layer} is out of range; llama has layers 0 to 2"):
        m.read(INPUTS, f"resid_post.{layer}")
    with pytest.raises(SiteError, match=f"layer {layer} is out of range; llama has layers 0 to 2"):
        m.forward(INPUTS, edit=Edit(f"z.{layer}.h1", Zero()))


def test_negative_layers_count_from_the_end() -> None:
    m = inlay.load(build("llama"))
    for layer in range(-LAYERS, 0):
        acts = m.read(INPUTS, f"resid_post.{layer}")
        assert torch.equal(
            acts[f"resid_post.{layer + LAYERS}"], m.read(INPUTS, "resid_post.*")[f"resid_post.{layer + LAYERS}"]
        )
        edit, same = Edit(f"z.{layer}.h1", Zero()), Edit(f"z.{layer + LAYERS}.h1", Zero())
        assert torch.equal(m.forward(INPUTS, edit=edit).logits, m.forward(INPUTS, edit=same).logits)


@pytest.mark.parametrize(("site", "heads"), [("z.0.h4", 4), ("q.0.h[0,7]", 4), ("k.1.h2", 2), ("pattern.*.h4", 4)])
def test_a_head_out_of_range(site: str, heads: int) -> None:
    m = inlay.load(build("llama"))
    for ask in (lambda: m.read(INPUTS, site), lambda: m.edited(Edit(site, Scale(0.5)))):
        with pytest.raises(SiteError, match=f"out of range; the Site has {heads} heads"):
            ask()


def test_a_raw_path_that_leads_nowhere() -> None:
    m = inlay.load(build("llama"))
    for raw in ("module:model.layers.7:out", "module:model.nope:in"):
        with pytest.raises(SiteError, match="LlamaForCausalLM has no module"):
            m.read(INPUTS, raw)
        with pytest.raises(SiteError, match="LlamaForCausalLM has no module"):
            m.edited(Edit(raw, Scale(0.5)))
    with pytest.raises(SiteError, match="float tensor"):
        m.read(INPUTS, "module:model.embed_tokens:in")


# -- custom modules --------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        z = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(z.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down_proj = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.up(x).relu())


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.before, self.attn, self.middle, self.mlp = (
            nn.LayerNorm(width),
            Attention(width, heads),
            nn.LayerNorm(width),
            Mlp(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.before(x))
        return x + self.mlp(self.middle(x))


class Tower(nn.Module):
    """A language model of one's own: ids in, logits out, a list of blocks between."""

    def __init__(self, width: int = 24, heads: int = 4, layers: int = 3) -> None:
        super().__init__()
        self.tokens, self.blocks = nn.Embedding(64, width), nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 64)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Odd(nn.Module):
    """The same blocks under names that say nothing, and a forward that takes its ids in a tuple with a mask."""

    def __init__(self) -> None:
        super().__init__()
        inner = Tower()
        self.a, self.stages, self.c = inner.tokens, nn.ModuleList(), nn.Sequential(inner.norm, inner.head)
        for block in inner.blocks:
            stage = nn.Module()
            stage.n1, stage.mix, stage.n2, stage.feed = block.before, block.attn, block.middle, block.mlp
            self.stages.append(_Stage(stage))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.a(ids)
        for stage in self.stages:
            x, _ = stage(x)
        return self.c(x)


class _Stage(nn.Module):
    def __init__(self, parts: nn.Module) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        x = x + self.parts.mix(self.parts.n1(x))
        return x + self.parts.feed(self.parts.n2(x)), None


ODD = {
    "embed": "a:out",
    "resid_pre": "stages.{layer}:in",
    "attn_out": "stages.{layer}.parts.mix:out",
    "resid_mid": "stages.{layer}.parts.n2:in",
    "q": ("stages.{layer}.parts.mix.q_proj:out", 4),
    "z": ("stages.{layer}.parts.mix.o_proj:in", 4),
    "mlp_act": "stages.{layer}.parts.feed.down_proj:in",
    "mlp_out": "stages.{layer}.parts.feed:out",
    "resid_post": "stages.{layer}:out",
    "logits": "c.1:out",
}
IDS_ = torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(0))


def custom(kind: Callable[[], nn.Module]) -> Any:
    torch.manual_seed(0)
    return kind().eval().requires_grad_(False)


def by_hook(
    module: nn.Module, path: str, side: str = "out", change: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """What a module of a custom model takes or gives, and the model's output, with that tensor changed."""
    seen: list[Tensor] = []

    def act(x: Tensor) -> Tensor:
        seen.append(x if change is None else change(x))
        return seen[0]

    def after(_: nn.Module, __: Any, output: Any) -> Any:
        return (act(output[0]), *output[1:]) if isinstance(output, tuple) else act(output)

    target = module.get_submodule(path)
    handle = (
        target.register_forward_hook(after)
        if side == "out"
        else target.register_forward_pre_hook(lambda _, args: (act(args[0]), *args[1:]))
    )
    with torch.no_grad():
        logits = module(IDS_)
    handle.remove()
    return seen[0], logits


def test_a_list_of_blocks_is_found_by_structure() -> None:
    module = custom(Tower)
    m = inlay.load(module)
    assert (m.layers, m.width) == (3, 24)
    paths = {
        "resid_pre": ("blocks.1", "in"),
        "attn_in": ("blocks.1.attn", "in"),
        "attn_out": ("blocks.1.attn", "out"),
        "q": ("blocks.1.attn.q_proj", "out"),
        "k": ("blocks.1.attn.k_proj", "out"),
        "v": ("blocks.1.attn.v_proj", "out"),
        "z": ("blocks.1.attn.o_proj", "in"),
        "mlp_in": ("blocks.1.mlp", "in"),
        "mlp_act": ("blocks.1.mlp.down_proj", "in"),
        "mlp_out": ("blocks.1.mlp", "out"),
        "resid_post": ("blocks.1", "out"),
    }
    for name, where in paths.items():
        read = m.read(IDS_, f"{name}.1")[f"{name}.1"]
        assert torch.equal(read, by_hook(module, *where)[0]), name
        out = m.forward(IDS_, edit=Edit(f"{name}.1", Scale(-0.5)))
        assert torch.equal(out.logits, by_hook(module, *where, lambda x: x * -0.5)[1]), name
    assert torch.equal(m.read(IDS_, "final_norm")["final_norm"], by_hook(module, "norm")[0])
    assert torch.equal(m.read(IDS_, "logits")["logits"], module(IDS_))
    with pytest.raises(SiteError, match="how many heads"):
        m.read(IDS_, "z.1.h0")
    with pytest.raises(SiteError, match="Tower has no Site 'pattern'"):
        m.read(IDS_, "pattern.1")


def test_a_module_with_a_config_of_its_own_kind() -> None:
    """A `config` attribute that is no Hugging Face config, as nanoGPT has one."""
    module = custom(Tower)
    module.config = SimpleNamespace(n_layer=3, n_head=4, block_size=64)
    m = inlay.load(module)
    assert m.layers == 3
    assert torch.equal(m.read(IDS_, "resid_post.1")["resid_post.1"], by_hook(module, "blocks.1")[0])
    assert torch.equal(
        m.forward(IDS_, edit=Edit("resid_post.1", Scale(2.0))).logits,
        by_hook(module, "blocks.1", "out", lambda x: 2 * x)[1],
    )
    assert m.identity()["layers"] == 3


def test_a_map_of_ones_own() -> None:
    module = custom(Odd)
    before = traces(module)
    m = inlay.load(module, sites=ODD)
    assert traces(module) == before
    assert (m.layers, m.width) == (3, 24)
    assert set(m.sites().places) == set(ODD)
    for name, spec in ODD.items():
        text = spec if isinstance(spec, str) else spec[0]
        path, _, side = text.format(layer=2).rpartition(":")
        site = f"{name}.2" if "{layer}" in text else name
        read = m.read(IDS_, site)[site]
        assert read.shape[2:] == ((4, 6) if name in ("q", "z") else read.shape[2:])
        assert torch.equal(read.flatten(2), by_hook(module, path, side)[0]), name
        if name != "resid_mid":
            out = m.forward(IDS_, edit=Edit(site, Scale(-0.5)))
            assert torch.equal(out.logits, by_hook(module, path, side, lambda x: x * -0.5)[1]), name


def test_heads_and_resid_mid_of_a_map_of_ones_own() -> None:
    module = custom(Odd)
    m = inlay.load(module, sites=ODD)
    z = by_hook(module, "stages.1.parts.mix.o_proj", "in")[0]
    assert torch.equal(m.read(IDS_, "z.1.h[3,0]")["z.1.h[3,0]"].flatten(2), torch.cat([z[..., 18:], z[..., :6]], -1))

    def ablate(x: Tensor) -> Tensor:
        return torch.cat([x[..., :12], torch.zeros_like(x[..., 12:18]), x[..., 18:]], -1)

    expected = by_hook(module, "stages.1.parts.mix.o_proj", "in", ablate)[1]
    assert torch.equal(m.forward(IDS_, edit=Edit("z.1.h2", Zero())).logits, expected)

    v = torch.randn(24)
    with torch.no_grad():
        x = module.a(IDS_)
        for index, stage in enumerate(module.stages):
            x = x + stage.parts.mix(stage.parts.n1(x))
            x = x + v if index == 1 else x
            x = x + stage.parts.feed(stage.parts.n2(x))
        by_hand = module.c(x)
    torch.testing.assert_close(m.forward(IDS_, edit=Edit("resid_mid.1", Add(v))).logits, by_hand, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("sites", "says"),
    [
        ({"residual": "stages.{layer}:out"}, "no Site is called so"),
        ({"resid_post": "stages.{layer}"}, "or ':out'"),
        ({"resid_post": "stages.{layer}:both"}, "or ':out'"),
        ({"resid_post": "stages.0:out"}, "{layer}"),
        ({"resid_post": "stages.{number}:out"}, "{layer}"),
        ({"resid_post": "stages.{layer}.{part}:out"}, "{layer}"),
        ({"logits": "stages.{layer}:out"}, "{layer}"),
        ({"resid_post": "steps.{layer}:out"}, r"called no module at 'steps\.0'"),
        ({"resid_post": "stages.{layer}.parts:out"}, r"called no module at 'stages\.0\.parts'"),
        ({"resid_post": 3}, "or ':out'"),
        ({"z": ("stages.{layer}.parts.mix.o_proj:in", 5)}, "5 heads"),
        ({}, "sites="),
    ],
    ids=str,
)
def test_a_wrong_map(sites: dict[str, Any], says: str) -> None:
    module = custom(Odd)
    before = traces(module)
    with pytest.raises(SiteError, match=says):
        inlay.load(module, sites=sites)
    assert traces(module) == before


def test_a_module_without_blocks_names_the_remedy() -> None:
    with pytest.raises(ModelError, match=r"Sequential has no nn\.ModuleList of blocks.*sites="):
        inlay.load(nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 8)))


def test_an_example_stands_in_for_ids() -> None:
    class Takes(Tower):
        def forward(self, ids: Tensor) -> Tensor:  # refuses what is not a row of eight
            assert ids.shape[1] >= 8
            return super().forward(ids)

    module = custom(Takes)
    with pytest.raises(ModelError, match="example="):
        inlay.load(module)
    m = inlay.load(module, example=torch.zeros(1, 8, dtype=torch.long))
    assert "attn_out" in m.sites().places


# -- models inside models --------------------------------------------------------------------------------------------


def llava(vision_width: int, vision_layers: int = LAYERS) -> Any:
    vision = t.CLIPVisionConfig(
        hidden_size=vision_width,
        intermediate_size=2 * vision_width,
        num_hidden_layers=vision_layers,
        num_attention_heads=4,
        image_size=8,
        patch_size=4,
        projection_dim=16,
    )
    config = t.LlavaConfig(vision_config=vision, text_config=t.LlamaConfig(**GROUPED), image_token_index=63)
    torch.manual_seed(0)
    hf = t.LlavaForConditionalGeneration._from_config(config, attn_implementation="eager")
    randomize(hf)
    return hf.eval().requires_grad_(False)


def gemma3() -> Any:
    vision = t.SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=4
    )
    text = FAMILIES["gemma3"].config()
    config = t.Gemma3Config(
        vision_config=vision,
        text_config=text,
        mm_tokens_per_image=4,
        image_token_index=63,
        boi_token_index=62,
        eoi_token_index=61,
    )
    torch.manual_seed(0)
    hf = t.Gemma3ForConditionalGeneration._from_config(config, attn_implementation="eager")
    randomize(hf)
    return hf.eval().requires_grad_(False)


def within(places: dict[str, str]) -> dict[str, str]:
    """A family's table inside a wrapper with a `language_model`."""
    return {
        n: w.replace("model.", "model.language_model.", 1) if w.startswith("model.") else w for n, w in places.items()
    }


@pytest.mark.parametrize("kind", ["llava", "llava with a larger tower of as many blocks", "gemma3"])
def test_the_text_model_inside_a_multimodal_one(kind: str) -> None:
    from dataclasses import replace

    hf = gemma3() if kind == "gemma3" else llava(128 if "larger" in kind else 16)
    row = FAMILIES["gemma3" if kind == "gemma3" else "llama"]
    row = replace(row, places=within(row.places))
    before = traces(hf)
    m = inlay.load(hf)
    assert traces(hf) == before
    assert set(m.sites().places) == set(row.sites)
    assert m.sites().blocks[0] == "model.language_model.layers.0"
    heard = listen(hf, row, INPUTS)
    acts = m.read(INPUTS, [n if i is None else f"{n}.{i}" for n, i in heard.sites])
    for (name, layer), whole in heard.sites.items():
        assert torch.equal(acts[name if layer is None else f"{name}.{layer}"].flatten(2), whole), name
    for name in ("resid_post", "z", "attn_out", "mlp_act"):
        changed = listen(hf, row, INPUTS, (name, 1), lambda x: x * -0.5, only=[])
        assert torch.equal(m.forward(INPUTS, edit=Edit(f"{name}.1", Scale(-0.5))).logits, changed.logits), name
