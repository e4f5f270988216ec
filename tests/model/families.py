"""Every supported family once: a random tiny config, and where its Sites lie by the family's own source code.

The table is written by hand from the `modeling_*.py` files and knows nothing of inlay's map. A Site's location is
`"path:in"`, `"path:out"` (the first tensor of a module's input or output), or `"path:query"`, `"path:key"`,
`"path:pattern"` (inside the attention function that the module calls). `{}` stands for the layer. The order of a
table is an order in which the tensors can be computed, so what stands before a Site is never changed by it.

Legend: R rows, T tokens, W width of a fused projection, H heads, K key/value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers as t
from torch import Tensor, nn

VOCAB, WIDTH, INNER, LAYERS, HEADS, KV = 64, 48, 80, 3, 4, 2
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
PLAIN = {
    **IDS,
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 64,
}
DENSE = {**PLAIN, "intermediate_size": INNER}
GROUPED = {**DENSE, "num_key_value_heads": KV}
GPT = {**IDS, "vocab_size": VOCAB, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 64}
HALF_ROTARY = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]

Places = dict[str, str]


def places(
    block: str, attn: str, out: str, mlp: str, down: str, embed: str, norm: str, **changed: str | None
) -> Places:
    """The locations of a pre-norm block of separate projections; `changed` replaces some, `None` takes one away."""
    b, a, m = block, f"{block}.{attn}", f"{block}.{mlp}"
    table: dict[str, str | None] = {
        "embed": f"{embed}:out",
        "resid_pre": f"{b}:in",
        "attn_in": f"{a}:in",
        "q": f"{a}.q_proj:out",
        "k": f"{a}.k_proj:out",
        "v": f"{a}.v_proj:out",
        "q_rot": f"{a}:query",
        "k_rot": f"{a}:key",
        "pattern": f"{a}:pattern",
        "z": f"{a}.{out}:in",
        "attn_out": f"{a}:out",
        "resid_mid": f"{b}.post_attention_layernorm:in",
        "mlp_in": f"{m}:in",
        "router": None,
        "mlp_act": f"{m}.{down}:in",
        "mlp_out": f"{m}:out",
        "resid_post": f"{b}:out",
        "final_norm": f"{norm}:out",
        "logits": "lm_head:out",
    }
    table.update({name: f"{b}.{where}" if where is not None else None for name, where in changed.items()})
    return {name: where for name, where in table.items() if where is not None}


def llama(**changed: str | None) -> Places:
    more = {"attn": "self_attn", "out": "o_proj", "mlp": "mlp", "down": "down_proj", **changed}
    return places("model.layers.{}", embed="model.embed_tokens", norm="model.norm", **more)  # type: ignore[arg-type]


def gpt(attn: str, out: str, mlp: str, down: str, embed: str = "wte", **changed: str | None) -> Places:
    return places("transformer.h.{}", attn, out, mlp, down, f"transformer.{embed}", "transformer.ln_f", **changed)


def fused(where: str) -> dict[str, str]:
    return dict.fromkeys("qkv", where)


CLOSED: dict[str, None] = dict.fromkeys(("q_rot", "k_rot", "pattern"))  # attention in one piece, without a module
EXPERTS = {"mlp_act": None, "router": "mlp.gate:out"}

# -- fused projections, split as the families' own forward does ------------------------------------------------------

Split = Callable[[Tensor], list[Tensor]]
Join = Callable[[list[Tensor]], Tensor]


def _flat(heads: Tensor) -> Tensor:
    return heads.reshape(*heads.shape[:2], -1)


@dataclass(frozen=True)
class Layout:
    """How a fused projection holds q, k and v: [R, T, W] to three [R, T, heads D], and back."""

    split: Split
    join: Join


def thirds() -> Layout:
    """GPT-2, MPT: `split(hidden_size, dim=2)`."""
    return Layout(lambda w: list(w.chunk(3, dim=2)), lambda qkv: torch.cat(qkv, 2))


def phi3(H: int, K: int, D: int) -> Layout:
    """Phi-3: q, then k, then v, of H, K and K heads."""
    return Layout(
        lambda w: [w[..., : H * D], w[..., H * D : H * D + K * D], w[..., H * D + K * D :]],
        lambda qkv: torch.cat(qkv, 2),
    )


def neox(H: int, D: int) -> Layout:
    """GPT-NeoX: `view(R, T, H, 3 D)`, `chunk(3, dim=-1)`."""
    return Layout(
        lambda w: [_flat(x) for x in w.view(*w.shape[:2], H, 3 * D).chunk(3, dim=-1)],
        lambda qkv: _flat(torch.cat([x.view(*x.shape[:2], H, D) for x in qkv], -1)),
    )


def bloom(H: int, D: int) -> Layout:
    """BLOOM and Falcon's oldest layout: `view(R, T, H, 3, D)`."""
    return Layout(
        lambda w: [_flat(w.view(*w.shape[:2], H, 3, D)[..., i, :]) for i in range(3)],
        lambda qkv: _flat(torch.stack([x.view(*x.shape[:2], H, D) for x in qkv], -2)),
    )


def falcon_multi_query(H: int, D: int) -> Layout:
    """Falcon-7B: `view(R, T, H + 2, D)`, the last two are the only key and value."""
    return Layout(
        lambda w: [_flat(x) for x in w.view(*w.shape[:2], H + 2, D).split([H, 1, 1], dim=2)],
        lambda qkv: torch.cat(qkv, 2),
    )


def falcon_grouped(H: int, K: int, D: int) -> Layout:
    """Falcon-40B: `view(R, T, K, H / K + 2, D)`, in each group the queries, then one key and one value."""

    def split(w: Tensor) -> list[Tensor]:
        grouped = w.view(*w.shape[:2], K, H // K + 2, D)
        return [_flat(grouped[:, :, :, :-2]), _flat(grouped[:, :, :, -2]), _flat(grouped[:, :, :, -1])]

    def join(qkv: list[Tensor]) -> Tensor:
        parts = [x.view(*x.shape[:2], K, -1, D) for x in qkv]
        return _flat(torch.cat(parts, 3))

    return Layout(split, join)


# -- the table -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """One row.

    Attributes:
        config: makes the config anew.
        places: Site name to location; these Sites it has, and no others.
        kv: key/value heads.
        size: head width.
        fused: how its fused projection holds q, k and v.
        layers: Site name to the layers that have it, where not all do.
        scale: what a block multiplies attention's and the MLP's outputs by.
        parallel: attention and MLP read the same stream.
    """

    config: Callable[[], Any]
    places: Places
    kv: int = KV
    size: int = WIDTH // HEADS
    fused: Layout | None = None
    layers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    scale: float = 1.0
    parallel: bool = False

    @property
    def sites(self) -> tuple[str, ...]:
        """The names of its Sites, in an order of computation."""
        return tuple(self.places)

    def layers_of(self, name: str) -> tuple[int | None, ...]:
        """The layers that have a Site; `(None,)` for a global one."""
        if "{}" not in self.places[name]:
            return (None,)
        return self.layers.get(name, tuple(range(LAYERS)))

    def heads_of(self, name: str) -> int:
        """The number of heads of a Site, 0 where it has none."""
        return {
            "q": HEADS,
            "z": HEADS,
            "q_rot": HEADS,
            "pattern": HEADS,
            "k": self.kv,
            "v": self.kv,
            "k_rot": self.kv,
        }.get(name, 0)

    def where(self, name: str, layer: int | None) -> tuple[str, str]:
        """The module path and the side of a Site."""
        path, _, side = self.places[name].format(layer).rpartition(":")
        return path, side


POST_NORMS = {
    "attn_out": "post_attention_layernorm:out",
    "resid_mid": "pre_feedforward_layernorm:in",
    "mlp_out": "post_feedforward_layernorm:out",
}
NEOX = {
    "attn": "attention",
    "out": "dense",
    "mlp": "mlp",
    "down": "dense_4h_to_h",
    "embed": "gpt_neox.embed_in",
    "norm": "gpt_neox.final_layer_norm",
    **fused("attention.query_key_value:out"),
}
FALCON = {
    "attn": "self_attention",
    "out": "dense",
    "mlp": "mlp",
    "down": "dense_4h_to_h",
    "embed": "word_embeddings",
    **fused("self_attention.query_key_value:out"),
    **CLOSED,
}
OPT = {
    "attn": "self_attn",
    "out": "out_proj",
    "mlp": "",
    "down": "",
    "embed": "model.decoder.embed_tokens",
    "norm": "model.decoder.final_layer_norm",
    "mlp_in": "fc1:in",
    "mlp_act": "fc2:in",
    "mlp_out": "fc2:out",
    "resid_mid": "final_layer_norm:in",
}


def _opt(**changed: Any) -> Any:
    return t.OPTConfig(**PLAIN, ffn_dim=INNER, word_embed_proj_dim=WIDTH, dropout=0.0, **changed)


def _falcon(**changed: Any) -> Any:
    return t.FalconConfig(**PLAIN, **changed)


FAMILIES: dict[str, Family] = {
    "llama": Family(lambda: t.LlamaConfig(**GROUPED), llama()),
    "mistral": Family(lambda: t.MistralConfig(**GROUPED, sliding_window=4), llama()),
    "mixtral": Family(lambda: t.MixtralConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2), llama(**EXPERTS)),
    "qwen2": Family(lambda: t.Qwen2Config(**GROUPED), llama()),
    "qwen3": Family(lambda: t.Qwen3Config(**GROUPED, head_dim=16), llama(), size=16),
    "qwen2_moe": Family(
        lambda: t.Qwen2MoeConfig(
            **GROUPED,
            moe_intermediate_size=32,
            shared_expert_intermediate_size=32,
            num_experts=4,
            num_experts_per_tok=2,
            decoder_sparse_step=2,
        ),
        llama(router="mlp.gate:out"),
        layers={"router": (1,), "mlp_act": (0, 2)},
    ),
    "qwen3_moe": Family(
        lambda: t.Qwen3MoeConfig(
            **GROUPED,
            moe_intermediate_size=32,
            num_experts=4,
            num_experts_per_tok=2,
            norm_topk_prob=True,
            head_dim=16,
        ),
        llama(**EXPERTS),
        size=16,
    ),
    "gemma": Family(lambda: t.GemmaConfig(**GROUPED, head_dim=16), llama(), size=16),
    "gemma2": Family(
        lambda: t.Gemma2Config(
            **GROUPED, head_dim=16, sliding_window=4, query_pre_attn_scalar=16, attn_logit_softcapping=5.0
        ),
        llama(**POST_NORMS),
        size=16,
    ),
    "gemma3": Family(
        lambda: t.Gemma3TextConfig(
            **GROUPED, head_dim=16, sliding_window=4, query_pre_attn_scalar=16, layer_types=SLIDING
        ),
        llama(**POST_NORMS),
        size=16,
    ),
    "olmo": Family(lambda: t.OlmoConfig(**GROUPED), llama()),
    "olmo_clipped": Family(lambda: t.OlmoConfig(**GROUPED, clip_qkv=0.5), llama()),
    "olmo2": Family(
        lambda: t.Olmo2Config(**GROUPED),
        llama(attn_out="post_attention_layernorm:out", resid_mid="mlp:in", mlp_out="post_feedforward_layernorm:out"),
    ),
    "phi3": Family(
        lambda: t.Phi3Config(**GROUPED, resid_pdrop=0.0),
        llama(**fused("self_attn.qkv_proj:out")),
        fused=phi3(HEADS, KV, WIDTH // HEADS),
    ),
    "phi": Family(
        lambda: t.PhiConfig(**DENSE, rope_parameters=HALF_ROTARY),
        places(
            "model.layers.{}",
            "self_attn",
            "dense",
            "mlp",
            "fc2",
            "model.embed_tokens",
            "model.final_layernorm",
            resid_mid=None,
        ),
        kv=HEADS,
        parallel=True,
    ),
    "gpt2": Family(
        lambda: t.GPT2Config(**GPT),
        gpt("attn", "c_proj", "mlp", "c_proj", resid_mid="ln_2:in", **fused("attn.c_attn:out")),
        kv=HEADS,
        fused=thirds(),
    ),
    "gpt_neox": Family(
        lambda: t.GPTNeoXConfig(**DENSE, rope_parameters=HALF_ROTARY),
        places("gpt_neox.layers.{}", **NEOX, resid_mid=None),
        kv=HEADS,
        fused=neox(HEADS, WIDTH // HEADS),
        parallel=True,
    ),
    "gpt_neox_sequential": Family(
        lambda: t.GPTNeoXConfig(**DENSE, rope_parameters=HALF_ROTARY, use_parallel_residual=False),
        places("gpt_neox.layers.{}", **NEOX),
        kv=HEADS,
        fused=neox(HEADS, WIDTH // HEADS),
    ),
    "gptj": Family(
        lambda: t.GPTJConfig(**GPT, rotary_dim=8),
        gpt("attn", "out_proj", "mlp", "fc_out", resid_mid=None),
        kv=HEADS,
        parallel=True,
    ),
    "gpt_neo": Family(
        lambda: t.GPTNeoConfig(
            **IDS,
            vocab_size=VOCAB,
            hidden_size=WIDTH,
            num_layers=LAYERS,
            num_heads=HEADS,
            attention_types=[[["local", "global", "local"], 1]],
            window_size=4,
            max_position_embeddings=64,
        ),
        gpt("attn.attention", "out_proj", "mlp", "c_proj", resid_mid="ln_2:in", **CLOSED)
        | {"attn_in": "transformer.h.{}.attn:in", "attn_out": "transformer.h.{}.attn:out"},
        kv=HEADS,
    ),
    "falcon_grouped": Family(
        lambda: _falcon(num_kv_heads=KV, new_decoder_architecture=True),
        gpt(**FALCON, resid_mid=None),
        fused=falcon_grouped(HEADS, KV, WIDTH // HEADS),
        parallel=True,
    ),
    "falcon_one_norm": Family(
        lambda: _falcon(num_kv_heads=KV, new_decoder_architecture=True, num_ln_in_parallel_attn=1),
        gpt(**FALCON, resid_mid=None),
        fused=falcon_grouped(HEADS, KV, WIDTH // HEADS),
        parallel=True,
    ),
    "falcon_multi_query": Family(
        lambda: _falcon(multi_query=True),
        gpt(**FALCON, resid_mid=None),
        kv=1,
        fused=falcon_multi_query(HEADS, WIDTH // HEADS),
        parallel=True,
    ),
    "falcon_alibi": Family(
        lambda: _falcon(multi_query=False, alibi=True, parallel_attn=False),
        gpt(**FALCON),
        kv=HEADS,
        fused=bloom(HEADS, WIDTH // HEADS),
    ),
    "bloom": Family(
        lambda: t.BloomConfig(**IDS, vocab_size=VOCAB, hidden_size=WIDTH, n_layer=LAYERS, n_head=HEADS),
        gpt(
            "self_attention",
            "dense",
            "mlp",
            "dense_4h_to_h",
            "word_embeddings",
            q_rot=None,
            k_rot=None,
            pattern="self_attention.attention_dropout:out",
            attn_out="self_attention.dense:out",  # the attention and the MLP add the residual inside
            mlp_out="mlp.dense_4h_to_h:out",
            **fused("self_attention.query_key_value:out"),
        ),
        kv=HEADS,
        fused=bloom(HEADS, WIDTH // HEADS),
    ),
    "opt": Family(lambda: _opt(), places("model.decoder.layers.{}", **OPT), kv=HEADS),
    "opt_post_norm": Family(
        lambda: _opt(do_layer_norm_before=False),
        {
            name: where
            for name, where in places("model.decoder.layers.{}", **OPT).items()
            if name not in ("attn_out", "mlp_out", "resid_mid", "final_norm")  # both sums are normed inside the block
        },
        kv=HEADS,
    ),
    "bitnet": Family(
        lambda: t.BitNetConfig(**GROUPED), llama(z="self_attn.attn_sub_norm:in", mlp_act="mlp.ffn_sub_norm:in")
    ),
    "gpt_oss": Family(
        lambda: t.GptOssConfig(
            **GROUPED,
            head_dim=16,
            num_local_experts=4,
            num_experts_per_tok=2,
            sliding_window=4,
            layer_types=SLIDING,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        llama(mlp_act=None, router="mlp.router:out"),
        size=16,
    ),
    "stablelm": Family(lambda: t.StableLmConfig(**{**GROUPED, "hidden_size": 64}, qk_layernorm=True), llama(), size=16),
    "stablelm_parallel": Family(
        lambda: t.StableLmConfig(**{**GROUPED, "hidden_size": 64}, use_parallel_residual=True),
        llama(resid_mid=None),
        size=16,
        parallel=True,
    ),
    "granite": Family(
        lambda: t.GraniteConfig(**GROUPED, residual_multiplier=0.3, embedding_multiplier=3.0, logits_scaling=2.0),
        llama(),
        scale=0.3,
    ),
    "cohere2": Family(
        lambda: t.Cohere2Config(**GROUPED, sliding_window=4, layer_types=SLIDING),
        llama(resid_mid=None),
        parallel=True,
    ),
    "mpt": Family(
        lambda: t.MptConfig(**IDS, vocab_size=VOCAB, d_model=WIDTH, n_layers=LAYERS, n_heads=HEADS, max_seq_len=64),
        places(
            "transformer.blocks.{}",
            "attn",
            "out_proj",
            "ffn",
            "down_proj",
            "transformer.wte",
            "transformer.norm_f",
            mlp_out="ffn.down_proj:out",  # the MLP adds the residual inside
            resid_mid="norm_2:in",
            **fused("attn.Wqkv:out"),
            **CLOSED,
        ),
        kv=HEADS,
        fused=thirds(),
    ),
    "smollm3": Family(lambda: t.SmolLM3Config(**GROUPED, no_rope_layer_interval=2), llama()),
    "starcoder2": Family(lambda: t.Starcoder2Config(**GROUPED, sliding_window=4), llama(down="c_proj")),
    "glm4": Family(
        lambda: t.Glm4Config(**GROUPED, head_dim=WIDTH // HEADS, rope_parameters=HALF_ROTARY),
        llama(attn_out="post_self_attn_layernorm:out", mlp_out="post_mlp_layernorm:out"),
    ),
    "apertus": Family(lambda: t.ApertusConfig(**GROUPED), llama(resid_mid="feedforward_layernorm:in")),
}


def randomize(hf: nn.Module, seed: int = 0) -> None:
    """Weights under which mistakes show: unit-variance projections, norms and biases away from 1 and 0."""
    made = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in hf.parameters():
            noise = torch.randn(parameter.shape, generator=made)
            if parameter.ndim == 1:
                parameter.add_(0.3 * noise)
            else:
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)


def build(name: str, attention: str | None = "eager", seed: int = 0) -> Any:
    """A random model of a family, in eval mode and frozen; `None` for the family's own default attention."""
    config = FAMILIES[name].config()
    torch.manual_seed(seed)
    hf = t.AutoModelForCausalLM.from_config(config, **({"attn_implementation": attention} if attention else {}))
    randomize(hf, seed)
    return hf.eval().requires_grad_(False)
