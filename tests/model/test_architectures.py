"""The table of families: how fused projections are cut, which blocks are parallel, and what is not there and why."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as t
from tests.model import families as rows
from tests.model.families import FAMILIES, GPT, GROUPED, HEADS, KV, LAYERS, WIDTH, build, randomize
from tests.model.sites_by_hand import batch

import inlay
from inlay.errors import SiteError
from inlay.model import architectures as names
from inlay.model.sites import GLOBAL, LAYERED

SIZE = WIDTH // HEADS
GQA = SimpleNamespace(num_key_value_heads=KV)
FALCON = {"new_decoder_architecture": False, "multi_query": False, "num_kv_heads": HEADS}
LAYOUTS = {
    "thirds": (names.contiguous, SimpleNamespace(), rows.thirds(), 3 * WIDTH, HEADS),
    "contiguous, grouped": (names.contiguous, GQA, rows.phi3(HEADS, KV, SIZE), (HEADS + 2 * KV) * SIZE, KV),
    "by head, q k v": (names.by_head, SimpleNamespace(), rows.neox(HEADS, SIZE), 3 * WIDTH, HEADS),
    "by head, BLOOM's view": (names.by_head, SimpleNamespace(), rows.bloom(HEADS, SIZE), 3 * WIDTH, HEADS),
    "falcon, old": (names.falcon, SimpleNamespace(**FALCON), rows.bloom(HEADS, SIZE), 3 * WIDTH, HEADS),
    "falcon, multi-query": (
        names.falcon,
        SimpleNamespace(**FALCON | {"multi_query": True}),
        rows.falcon_multi_query(HEADS, SIZE),
        (HEADS + 2) * SIZE,
        1,
    ),
    "falcon, grouped": (
        names.falcon,
        SimpleNamespace(**FALCON | {"new_decoder_architecture": True, "num_kv_heads": KV}),
        rows.falcon_grouped(HEADS, KV, SIZE),
        (HEADS + 2 * KV) * SIZE,
        KV,
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_fused_projection_is_cut_as_the_family_cuts_it(layout: str) -> None:
    cut, config, by_hand, width, kv = LAYOUTS[layout]
    whole = torch.randn(2, 3, width)
    made = cut(config, width, HEADS)
    assert [one.heads for one in made] == [HEADS, kv, kv]
    parts = by_hand.split(whole)
    for one, part in zip(made, parts, strict=True):
        assert torch.equal(one.columns.get(whole), part)
    assert torch.equal(by_hand.join(parts), whole)  # the hand-written halves are each other's inverse


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("index", range(3))
def test_a_fused_projection_is_put_together_again(layout: str, index: int) -> None:
    cut, config, by_hand, width, _ = LAYOUTS[layout]
    whole = torch.randn(2, 3, width)
    parts = by_hand.split(whole)
    new = torch.randn_like(parts[index])
    changed = [new if i == index else part for i, part in enumerate(parts)]
    assert torch.equal(cut(config, width, HEADS)[index].columns.put(whole, new), by_hand.join(changed))


def assert_value_is_mixed(m: inlay.Model) -> None:
    """A first token attends to itself alone, so its z is its v: head h's is that of key/value head h // (H / KV)."""
    ids = batch(6, 6)
    for layer in range(LAYERS):
        acts = m.read(ids, [f"z.{layer}", f"v.{layer}"], tokens="first")
        z, v = acts[f"z.{layer}"], acts[f"v.{layer}"]
        torch.testing.assert_close(z, v.repeat_interleave(z.shape[1] // v.shape[1], 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ("gpt_oss", "olmo_clipped")])
def test_the_value_of_a_first_token_is_what_leaves_attention(family: str) -> None:
    """But in gpt-oss a sink takes its share, and OLMo may clip values behind the projection."""
    assert_value_is_mixed(inlay.load(build(family)))


OTHERS: dict[str, Any] = {
    "gpt_bigcode": lambda: t.GPTBigCodeConfig(**GPT, multi_query=True),
    "gpt_bigcode, by head": lambda: t.GPTBigCodeConfig(**GPT, multi_query=False),
    "codegen": lambda: t.CodeGenConfig(**GPT, rotary_dim=8),
    "persimmon": lambda: t.PersimmonConfig(**{**rows.DENSE, "hidden_size": 64}),
    "glm": lambda: t.GlmConfig(**GROUPED, head_dim=12),
}


@pytest.mark.parametrize("family", OTHERS)
def test_a_layout_outside_the_table_is_not_guessed(family: str) -> None:
    """What is called v either is what attention mixes, or is not there."""
    torch.manual_seed(0)
    hf = t.AutoModelForCausalLM.from_config(OTHERS[family](), attn_implementation="eager")
    randomize(hf)
    m = inlay.load(hf.eval())
    if "v" in m.sites().places:
        assert_value_is_mixed(m)
    else:
        with pytest.raises(SiteError, match="has no Site 'v'"):
            m.read(batch(4), "v.0")


@pytest.mark.parametrize("family", FAMILIES)
def test_parallel_blocks_have_no_resid_mid(family: str) -> None:
    hf = build(family)
    entry = names.FAMILIES.get(hf.config.model_type, names.Family())
    assert bool(entry.parallel(hf.config)) == FAMILIES[family].parallel
    assert ("resid_mid" in inlay.load(hf).sites().places) == ("resid_mid" in FAMILIES[family].places)


@pytest.mark.parametrize("family", ["falcon_grouped", "falcon_multi_query", "falcon_alibi"])
def test_a_family_says_why_it_lacks_a_site(family: str) -> None:
    m = inlay.load(build(family))
    for name in ("q_rot", "k_rot", "pattern"):
        with pytest.raises(SiteError, match=f"falcon has no Site '{name}' .*computed inside one function"):
            m.read(batch(4), f"{name}.1")


def test_every_entry_names_sites_that_exist() -> None:
    known = {*LAYERED, *GLOBAL}
    for entry in names.FAMILIES.values():
        assert set(entry.lacks) <= known
        assert all(entry.lacks.values())


def multi_head_latent() -> Any:
    """DeepSeek: keys and values come out of one latent, and a value is not as wide as a query."""
    config = t.DeepseekV3Config(
        **{**GROUPED, "num_key_value_heads": HEADS},
        moe_intermediate_size=32,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=6,
        v_head_dim=10,
    )
    torch.manual_seed(0)
    hf = t.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    randomize(hf)
    return hf.eval()


def test_latent_attention_has_heads_of_two_widths_and_no_plain_projections() -> None:
    m = inlay.load(multi_head_latent())
    sites = m.sites()
    assert {"q", "k", "v"} <= set(sites.lacks)
    acts = m.read(batch(6, 6), ["z.1", "q_rot.1", "k_rot.1", "pattern.1"])
    assert acts["z.1"].shape == (2, 6, HEADS, 10)
    assert acts["q_rot.1"].shape == acts["k_rot.1"].shape == (2, 6, HEADS, 14)
    assert acts["pattern.1"].shape == (2, 6, HEADS, 6)
    widths = {name: sites.places[name][1].width for name in ("z", "q_rot", "k_rot")}
    assert widths == {"z": HEADS * 10, "q_rot": HEADS * 14, "k_rot": HEADS * 14}
    for name, width in (("q_rot.1.h2", 14), ("k_rot.1.h[0,3]", 28), ("z.1.h2", 10)):
        m.forward(batch(6, 6), edit=inlay.Edit(name, inlay.Add(torch.ones(width))))
        with pytest.raises(SiteError, match=f"width {width + 1}, and {name[:5]}.* has width {width}"):
            m.edited(inlay.Edit(name, inlay.Add(torch.ones(width + 1))))


HYBRID: dict[str, tuple[Any, tuple[int, ...]]] = {
    "recurrent_gemma": (
        lambda: t.RecurrentGemmaConfig(
            vocab_size=64,
            hidden_size=WIDTH,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=HEADS,
            lru_width=WIDTH,
            attention_window_size=8,
        ),
        (2,),
    ),
    "minimax": (lambda: t.MiniMaxConfig(**GROUPED, head_dim=SIZE, num_local_experts=4), (0, 2)),
}


@pytest.mark.parametrize("family", HYBRID)
def test_the_inside_of_attention_is_only_where_attention_is(family: str) -> None:
    """Blocks of another mixer lie between those of attention, in the same modeling file."""
    config, layers = HYBRID[family]
    torch.manual_seed(0)
    hf = t.AutoModelForCausalLM.from_config(config(), attn_implementation="eager")
    randomize(hf)
    m = inlay.load(hf.eval())
    for name in ("q_rot", "k_rot", "pattern"):
        assert tuple(m.sites().places[name]) == layers
        assert list(m.read(batch(6, 6), f"{name}.*")) == [f"{name}.{layer}" for layer in layers]
        with pytest.raises(SiteError, match="these layers have one"):
            m.read(batch(6, 6), f"{name}.1")
