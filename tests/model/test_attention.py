"""Inside the attention function: q_rot, k_rot and pattern, against HF's own weights, RoPE by hand and algebra."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from tests.model.families import FAMILIES, HEADS, KV, LAYERS, build
from tests.model.sites_by_hand import batch, forward
from torch import Tensor
from transformers import AttentionInterface, DynamicCache

import inlay
from inlay import Add, Edit, Scale, Zero
from inlay.errors import ModelError
from inlay.model import attention

FULL, PADDED = batch(9, 9), batch(9, 6)
INSIDE = [f for f, row in FAMILIES.items() if row.places.get("pattern", "").endswith(":pattern")]
PATTERNED = [f for f, row in FAMILIES.items() if "pattern" in row.places]
every_inside = pytest.mark.parametrize("family", INSIDE)


@cache
def model(family: str, kind: str | None = "eager") -> inlay.Model:
    return inlay.load(build(family, kind))


def read(family: str, *names: str, layer: int = 1) -> list[Tensor]:
    """Sites of one layer, [R, T, H, D]."""
    acts = model(family).read(FULL, [f"{name}.{layer}" for name in names])
    return [acts[f"{name}.{layer}"] for name in names]


def repeated(heads: Tensor) -> Tensor:
    """Key/value heads [R, T, K, D] as the H query heads see them: head h reads h // (H / K)."""
    return heads.repeat_interleave(HEADS // heads.shape[2], 2)


# -- reads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", PATTERNED)
@pytest.mark.parametrize("inputs", [FULL, PADDED], ids=["full", "padded"])
def test_the_pattern_is_what_transformers_returns(family: str, inputs: dict[str, Tensor]) -> None:
    m = model(family)
    with torch.no_grad():
        theirs = m.hf(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            output_attentions=True,
            use_cache=False,
        ).attentions
    acts = m.read(inputs, "pattern.*")
    for layer in range(LAYERS):
        for row, real in enumerate(inputs["attention_mask"].bool()):
            assert torch.equal(acts[f"pattern.{layer}"][row, real], theirs[layer][row].transpose(0, 1)[real])


@pytest.mark.parametrize("family", PATTERNED)
def test_a_pattern_is_causal_and_mixes_values_into_z(family: str) -> None:
    for layer in range(LAYERS):
        pattern, v, z = read(family, "pattern", "v", "z", layer=layer)
        pattern = pattern.transpose(1, 2)
        assert (pattern.triu(1) == 0).all()
        total = pattern.sum(-1)
        if family == "gpt_oss":  # the sink's share is left out
            assert (total < 1).all() and (total > 0).all()
        else:
            torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-6)
        if family != "olmo_clipped":  # which clips values behind the projection
            mixed = (pattern @ repeated(v).transpose(1, 2)).transpose(1, 2)
            torch.testing.assert_close(z, mixed, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("family", "layers"),
    [
        ("mistral", {0, 1, 2}),
        ("gemma2", {0, 2}),
        ("gemma3", {0, 2}),
        ("gpt_oss", {0, 2}),
        ("cohere2", {0, 2}),
        ("starcoder2", {0, 1, 2}),
    ],
)
def test_a_sliding_window_of_four_sees_four_keys(family: str, layers: set[int]) -> None:
    for layer in range(LAYERS):
        (pattern,) = read(family, "pattern", layer=layer)
        seen = (pattern > 0).any(2).any(0)  # [T, S]
        age = torch.arange(9)[:, None] - torch.arange(9)[None]
        allowed = (age >= 0) & (age < 4) if layer in layers else age >= 0
        assert torch.equal(seen, allowed)


SCALES = {"gemma2": 16**-0.5, "gemma3": 16**-0.5, "granite": 1.0, "opt": 1.0, "opt_post_norm": 1.0}


@every_inside
def test_a_pattern_is_the_softmax_of_its_queries_and_keys(family: str) -> None:
    scale = SCALES.get(family, FAMILIES[family].size ** -0.5)
    for layer in range(LAYERS):
        q, k, pattern = read(family, "q_rot", "k_rot", "pattern", layer=layer)
        scores = q.transpose(1, 2) @ repeated(k).permute(0, 2, 3, 1) * scale
        if family == "gemma2":
            scores = torch.tanh(scores / 5.0) * 5.0
        pattern = pattern.transpose(1, 2)
        scores = scores.masked_fill(pattern == 0, -torch.inf)  # which keys are open is tested above
        if family == "gpt_oss":
            sinks = model(family).hf.model.layers[layer].self_attn.sinks.reshape(1, -1, 1, 1).expand(2, -1, 9, 1)
            expected = torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]
        else:
            expected = scores.softmax(-1)
        torch.testing.assert_close(pattern, expected, rtol=1e-5, atol=1e-6)


def rope(x: Tensor, dims: int, theta: float = 10_000.0, pairs: str = "halves") -> Tensor:
    """Rotary embedding by its definition: pair i of the first `dims` turns by position times theta^(-2 i / dims).

    Args:
        x: [R, T, H, D], token t at position t.
        dims: how many dimensions are turned.
        theta: the base.
        pairs: "halves" pairs i with i + dims / 2, "neighbours" 2 i with 2 i + 1.
    """
    turned, kept = x[..., :dims].double(), x[..., dims:]
    angle = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * theta ** (
        -torch.arange(0, dims, 2, dtype=torch.float64) / dims
    )
    turn = torch.polar(torch.ones_like(angle), angle)[None, :, None]
    shape = (2, -1) if pairs == "halves" else (-1, 2)
    split = turned.unflatten(-1, shape)
    a, b = split.unbind(-2 if pairs == "halves" else -1)
    product = torch.complex(a, b) * turn
    joined = torch.stack([product.real, product.imag], -2 if pairs == "halves" else -1).flatten(-2)
    return torch.cat([joined.to(x.dtype), kept], -1)


def normed(norm: Callable[[Tensor], Tensor], x: Tensor, together: bool = False) -> Tensor:
    return norm(x.flatten(2)).unflatten(-1, (x.shape[2], -1)) if together else norm(x)


ROTATED: dict[str, Callable[[Tensor, Any, int, str], Tensor]] = {
    "llama": lambda x, a, i, n: rope(x, 12),
    "mistral": lambda x, a, i, n: rope(x, 12),
    "mixtral": lambda x, a, i, n: rope(x, 12, a.config.rope_parameters["rope_theta"]),
    "qwen2": lambda x, a, i, n: rope(x, 12),
    "qwen3": lambda x, a, i, n: rope(normed(getattr(a, f"{n}_norm"), x), 16),
    "gemma": lambda x, a, i, n: rope(x, 16),
    "gemma3": lambda x, a, i, n: rope(normed(getattr(a, f"{n}_norm"), x), 16, 1_000_000.0 if i == 1 else 10_000.0),
    "olmo2": lambda x, a, i, n: rope(normed(getattr(a, f"{n}_norm"), x, together=True), 12),
    "olmo_clipped": lambda x, a, i, n: rope(x.clamp(-0.5, 0.5), 12),
    "phi3": lambda x, a, i, n: rope(x, 12),
    "phi": lambda x, a, i, n: rope(x, 6),
    "gpt_neox": lambda x, a, i, n: rope(x, 6),
    "gptj": lambda x, a, i, n: rope(x, 8, pairs="neighbours"),
    "cohere2": lambda x, a, i, n: rope(x, 12, pairs="neighbours") if i != 1 else x,
    "smollm3": lambda x, a, i, n: rope(x, 12, a.config.rope_parameters["rope_theta"]) if i != 1 else x,
    "bitnet": lambda x, a, i, n: rope(x, 12, a.config.rope_parameters["rope_theta"]),
    "gpt2": lambda x, a, i, n: x,
    "opt": lambda x, a, i, n: x * 12**-0.5 if n == "q" else x,
}


@pytest.mark.parametrize("family", ROTATED)
def test_queries_and_keys_are_rotated_as_the_definition_says(family: str) -> None:
    m, row = model(family), FAMILIES[family]
    for layer in range(LAYERS):
        q, k, q_rot, k_rot = read(family, "q", "k", "q_rot", "k_rot", layer=layer)
        module = m.hf.get_submodule(row.where("attn_in", layer)[0])
        for name, plain, found in (("q", q, q_rot), ("k", k, k_rot)):
            torch.testing.assert_close(found, ROTATED[family](plain, module, layer, name), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "phi3", "gpt_neox", "opt"])
def test_under_sdpa_the_run_is_eager_for_its_length(family: str) -> None:
    eager, m = model(family), inlay.load(build(family, "sdpa"))
    before = forward(m.hf, FULL).logits
    sites = ["q_rot.1", "k_rot.1", "pattern.1", "resid_post.2", "logits"]
    mine, theirs = m.read(FULL, sites), eager.read(FULL, sites)
    assert all(torch.equal(mine[site], theirs[site]) for site in sites)
    edit = Edit("pattern.1", Scale(0.5)) + Edit("q_rot.0", Scale(2.0))
    assert torch.equal(m.forward(FULL, edit=edit).logits, eager.forward(FULL, edit=edit).logits)
    assert m.hf.config._attn_implementation == "sdpa"
    assert torch.equal(forward(m.hf, FULL).logits, before)


# -- writes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", PATTERNED)
def test_a_head_without_a_pattern_is_a_head_without_a_z(family: str) -> None:
    m = model(family)
    for heads in (".h2", ".h[0,3]", ""):
        none = m.forward(FULL, edit=Edit(f"pattern.1{heads}", Zero())).logits
        assert torch.equal(none, m.forward(FULL, edit=Edit(f"z.1{heads}", Zero())).logits)


@every_inside
def test_a_query_of_zero_attends_to_every_open_key_alike(family: str) -> None:
    if family == "gpt_oss":
        pytest.skip("its sink takes a share that is not uniform")
    (before,) = read(family, "pattern")
    count = (before > 0).sum(-1, keepdim=True)
    acts = model(family).read(FULL, ["pattern.1"], edit=Edit("q_rot.1.h[1,2]", Zero()))
    mine = acts["pattern.1"]
    uniform = (before > 0) / count
    torch.testing.assert_close(mine[:, :, [1, 2]], uniform[:, :, [1, 2]], rtol=1e-6, atol=1e-7)
    assert torch.equal(mine[:, :, [0, 3]], before[:, :, [0, 3]])


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "mixtral"])
@pytest.mark.parametrize("kv", range(KV))
def test_a_key_head_serves_its_own_query_heads(family: str, kv: int) -> None:
    (before,) = read(family, "pattern")
    mine = model(family).read(FULL, "pattern.1", edit=Edit(f"k_rot.1.h{kv}", Zero()))["pattern.1"]
    group = range(kv * HEADS // KV, (kv + 1) * HEADS // KV)
    for head in range(HEADS):
        assert torch.equal(mine[:, :, head], before[:, :, head]) == (head not in group)


@every_inside
def test_knocking_out_an_edge_by_hand(family: str) -> None:
    """Head 1 of the last token no longer sees token 2; by hand: the mixture of the others, not renormalised."""
    m = model(family)

    def cut(h: Tensor) -> Tensor:
        return torch.cat([h[..., :7], torch.zeros_like(h[..., 7:8]), h[..., 8:]], -1)

    out = m.forward(FULL, edit=Edit("pattern.1.h1", cut, tokens="last"), read=["z.1", "pattern.1"])
    pattern, v, z = read(family, "pattern", "v", "z")
    assert out.acts is not None
    if family == "olmo_clipped":
        v = v.clamp(-0.5, 0.5)
    expected = z.clone()
    expected[:, 8, 1] -= pattern[:, 8, 1, 7, None] * repeated(v)[:, 7, 1]
    torch.testing.assert_close(out.acts["z.1"], expected, rtol=1e-5, atol=2e-6)
    assert (out.acts["pattern.1"][:, 8, 1, 7] == 0).all()
    untouched = torch.ones(9, HEADS, dtype=torch.bool)
    untouched[8, 1] = False
    assert torch.equal(out.acts["z.1"][:, untouched], z[:, untouched])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen3"])
@pytest.mark.parametrize("site", ["q_rot.1", "k_rot.1", "k_rot.*", "pattern.1", "k_rot.0.h1", "q_rot.2.h3"])
@pytest.mark.parametrize("tokens", ["all", "first2", 1, [1, 3]], ids=str)
def test_with_a_cache_an_edit_gives_what_it_gives_without(family: str, site: str, tokens: Any) -> None:
    m = model(family)
    edit = Edit(site, Scale(-0.7), tokens=tokens)
    whole = m.forward(FULL, edit=edit).logits
    cache, pieces = DynamicCache(config=m.hf.config), []
    with torch.no_grad(), m.edited(edit):
        for a, b in ((0, 5), (5, 6), (6, 9)):
            taken = {"input_ids": FULL["input_ids"][:, a:b], "position_ids": FULL["position_ids"][:, a:b]}
            pieces.append(m.hf(**taken, cache=cache, use_cache=True).logits)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-4, atol=1e-5)


def test_a_read_under_a_cache_holds_the_calls_own_tokens() -> None:
    m = model("llama")
    whole = m.read(FULL, ["q_rot.1", "k_rot.1", "pattern.1"])
    cache = DynamicCache(config=m.hf.config)
    with torch.no_grad():
        m.hf(input_ids=FULL["input_ids"][:, :6], cache=cache, use_cache=True)
    more = {
        "cache": cache,
        "use_cache": True,
        "attention_mask": FULL["attention_mask"],
        "position_ids": FULL["position_ids"][:, 6:],
    }
    acts = m.forward(FULL["input_ids"][:, 6:], read=list(whole), **more).acts
    assert acts is not None
    for site, values in whole.items():
        torch.testing.assert_close(acts[site], values[:, 6:], rtol=1e-5, atol=1e-6)


def test_a_static_cache_does_not_tell_which_keys_are_which() -> None:
    m = model("llama")
    settings = {"max_new_tokens": 3, "do_sample": False, "cache_implementation": "static"}
    with pytest.raises(ModelError, match="k_rot needs a dynamic cache"):
        m.generate(FULL["input_ids"], edit=Edit("k_rot.1", Scale(0.5)), **settings)
    assert m.generate(FULL["input_ids"], edit=Edit("q_rot.1", Scale(0.5)), **settings)


def test_in_training_the_pattern_is_the_one_after_dropout() -> None:
    hf = build("llama")
    hf.config.attention_dropout = 0.5
    for block in hf.model.layers:
        block.self_attn.attention_dropout = 0.5
    hf.train()
    acts = inlay.load(hf).forward(FULL, read=["pattern.1", "v.1", "z.1"]).acts
    assert acts is not None
    pattern = acts["pattern.1"].transpose(1, 2)
    dropped = (pattern == 0).tril().float().sum() / (2 * HEADS * 45)
    assert 0.3 < dropped < 0.7
    mixed = (pattern @ repeated(acts["v.1"]).transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(acts["z.1"], mixed, rtol=1e-5, atol=1e-6)


# -- lifted ----------------------------------------------------------------------------------------------------------


def test_runs_nest_and_the_last_one_out_restores_the_setting() -> None:
    m = inlay.load(build("llama", "sdpa"))
    before = forward(m.hf, FULL).logits
    outer, inner = Edit("pattern.1.h0", Zero()), Edit("pattern.1.h3", Zero())
    both = m.forward(FULL, edit=outer + inner).logits
    with m.edited(outer):
        with m.edited(inner):
            assert torch.equal(forward(m.hf, FULL).logits, both)
        assert torch.equal(forward(m.hf, FULL).logits, m.forward(FULL).logits)
        assert not torch.equal(forward(m.hf, FULL).logits, both)
    assert m.hf.config._attn_implementation == "sdpa"
    assert torch.equal(forward(m.hf, FULL).logits, before)
    assert not attention._watching.stack


def test_an_exception_inside_restores_the_setting() -> None:
    m = inlay.load(build("llama", "sdpa"))

    def fails(h: Tensor) -> Tensor:
        raise ZeroDivisionError("in the middle")

    for site in ("q_rot.1", "k_rot.1", "pattern.1"):
        with pytest.raises(ZeroDivisionError, match="in the middle"):
            m.forward(FULL, edit=Edit(site, fails))
        assert m.hf.config._attn_implementation == "sdpa"
        assert not attention._watching.stack


def test_a_setting_of_the_users_own_comes_back() -> None:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    calls: list[int] = []

    def mine(module: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(module.layer_idx)
        return sdpa_attention_forward(module, *args, **kwargs)

    AttentionInterface.register("users_own", mine)
    hf = build("llama", "users_own")
    m = inlay.load(hf)
    m.read(FULL, "pattern.1")
    assert hf.config._attn_implementation == "users_own"
    calls.clear()
    forward(hf, FULL)
    assert calls == [0, 1, 2]
    calls.clear()
    m.forward(FULL, edit=Edit("resid_post.1", Add(torch.ones(48))))
    assert calls == [0, 1, 2]  # an edit outside of attention leaves the function in place


def test_two_threads_reach_inside_one_model_at_a_time_of_their_own() -> None:
    m = inlay.load(build("llama", "sdpa"))
    edits = [Edit(f"pattern.1.h{head}", Zero()) for head in range(HEADS)]
    expected = [m.forward(FULL, edit=edit).logits for edit in edits]
    found: dict[int, list[bool]] = {}

    def work(index: int) -> None:
        found[index] = [torch.equal(m.forward(FULL, edit=edits[index]).logits, expected[index]) for _ in range(8)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(HEADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: [True] * 8 for i in range(HEADS)}
    assert m.hf.config._attn_implementation == "sdpa"
