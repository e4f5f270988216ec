"""The one table of model families: what a block's parts are called, and what structure alone does not tell.

Most families need no entry: `discover.py` finds the parts by these names and checks what it found on a two-token run.
An entry in `FAMILIES` says only what cannot be measured: how a fused projection interleaves, and what a family lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from inlay.model.places import Columns

ATTENTION = ("self_attn", "attn.attention", "attn", "attention", "self_attention", "temporal_block", "mixer")
SEPARATE = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"))
FUSED = ("qkv_proj", "c_attn", "query_key_value", "Wqkv")
OUT = ("o_proj", "out_proj", "c_proj", "dense", "wo")
MLP = ("mlp", "feed_forward", "block_sparse_moe", "ffn")
DOWN = ("down_proj", "c_proj", "fc_out", "dense_4h_to_h", "fc2", "w2")
UP = ("fc1",)
ACTIVATION = ("act_fn", "act", "activation_fn", "activation", "gelu_impl")
ROUTER = ("gate", "router")
BEFORE_OUT = ("attn_sub_norm",)
BEFORE_DOWN = ("ffn_sub_norm",)
POST_ATTENTION = ("post_self_attn_layernorm", "post_attention_layernorm", "post_attention_norm")
POST_MLP = ("post_feedforward_layernorm", "post_mlp_layernorm")
BEFORE_MLP = (
    "pre_feedforward_layernorm",
    "post_attention_layernorm",
    "ln_2",
    "final_layer_norm",
    "norm_2",
    "ffn_norm",
    "feedforward_layernorm",
)
FINAL_NORM = ("norm", "final_layer_norm", "ln_f", "final_layernorm", "norm_f", "final_norm", "layer_norm")
DECODER_LAYERS = ("num_decoder_layers", "decoder_layers")
HEAD = ("lm_head", "embed_out", "head", "output")

Layout = Callable[[Any, int, int], "tuple[Fused, Fused, Fused]"]


@dataclass(frozen=True)
class Fused:
    """One of q, k, v inside a fused projection: its columns and its number of heads."""

    columns: Columns
    heads: int


def contiguous(config: Any, width: int, heads: int) -> tuple[Fused, Fused, Fused]:
    """q, then k, then v (GPT-2, MPT, Phi-3): H hd, KV hd, KV hd columns."""
    kv = getattr(config, "num_key_value_heads", None) or heads
    size = width // (heads + 2 * kv)
    edges = (0, heads * size, (heads + kv) * size, width)
    return tuple(  # type: ignore[return-value]
        Fused(Columns((width,), (slice(a, b),)), n) for a, b, n in zip(edges, edges[1:], (heads, kv, kv), strict=False)
    )


def by_head(config: Any, width: int, heads: int) -> tuple[Fused, Fused, Fused]:
    """q, k, v of head 0, then of head 1 ... (GPT-NeoX, BLOOM, old Falcon): [H, 3, hd]."""
    shape = (heads, 3, width // (3 * heads))
    return tuple(Fused(Columns(shape, (slice(None), i)), heads) for i in range(3))  # type: ignore[return-value]


def falcon(config: Any, width: int, heads: int) -> tuple[Fused, Fused, Fused]:
    """Falcon's three layouts: new [KV, H/KV + 2, hd], multi-query [H + 2, hd], old [H, 3, hd]."""
    if config.new_decoder_architecture:
        kv = config.num_kv_heads
        group = heads // kv
        shape = (kv, group + 2, width // (kv * (group + 2)))
        every = slice(None)
        return (
            Fused(Columns(shape, (every, slice(0, group))), heads),
            Fused(Columns(shape, (every, group)), kv),
            Fused(Columns(shape, (every, group + 1)), kv),
        )
    if config.multi_query:
        many = (heads + 2, width // (heads + 2))
        return (
            Fused(Columns(many, (slice(0, heads),)), heads),
            Fused(Columns(many, (heads,)), 1),
            Fused(Columns(many, (heads + 1,)), 1),
        )
    return by_head(config, width, heads)


@dataclass(frozen=True)
class Family:
    """What a family's structure does not tell.

    Attributes:
        fused: how its fused projection interleaves q, k and v.
        parallel: whether its blocks feed attention and MLP from the same stream, so that no `resid_mid` exists.
        dropout: a child of the attention module whose output is the attention pattern, for families that do not call
            an attention function.
        overwrites: the Sites whose tensors its blocks go on to write into.
        lacks: Site name to the reason why this family has none.
    """

    fused: Layout = contiguous
    parallel: Callable[[Any], bool] = lambda config: False
    dropout: str = ""
    overwrites: tuple[str, ...] = ()
    lacks: Mapping[str, str] = field(default_factory=dict)


def _always(config: Any) -> bool:
    return True


FAMILIES: dict[str, Family] = {
    "bloom": Family(by_head, dropout="attention_dropout"),
    "cohere": Family(parallel=_always),
    "cohere2": Family(parallel=_always),
    "falcon": Family(
        falcon,
        parallel=lambda c: bool(c.parallel_attn or c.new_decoder_architecture),
        overwrites=("mlp_out",),
        lacks={name: "its attention is computed inside one function" for name in ("q_rot", "k_rot", "pattern")},
    ),
    "gpt_neox": Family(by_head, parallel=lambda c: bool(c.use_parallel_residual)),
    "gptj": Family(parallel=_always),
    "olmo": Family(overwrites=("q", "k", "v")),
    "olmoe": Family(overwrites=("q", "k", "v")),
    "phi": Family(parallel=_always),
    "stablelm": Family(parallel=lambda c: bool(getattr(c, "use_parallel_residual", False))),
}
