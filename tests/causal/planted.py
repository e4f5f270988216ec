"""Networks whose inside is known: a Llama with two planted variables, and a hand-compiled equality network.

**The planted Llama.** Width 32, two blocks that add nothing to the stream (their output projections are 0). A token is
a pair of variables c and s of 3 bits each, and one of 32 copies. Its embedding holds the bits of c as +-1 along the
columns of U, those of s along the columns of W, and N(0, 1) in the other 26 dimensions. The head's row c is 3 bits(c)
U^T, so that the answer to a token is its c. c lies in U, s in W, and whatever else holds neither.

**The equality network.** Four entities a, b, c, d in the plane; true iff (a = b) = (c = d). The state behind the first
block is relu([a - b, b - a, c - d, d - c]), whose first half is 0 iff a = b and whose second half is 0 iff c = d.
"""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import inlay
from inlay.causal import CausalModel, Counterfactual, counterfactuals

WIDTH, VALUES, COPIES, BITS = 32, 8, 32, 3
SITE = "resid_post.0"


def bits(value: int) -> Tensor:
    """The bits of 0 to 7 as +-1, [3]."""
    return torch.tensor([1.0 if value >> i & 1 else -1.0 for i in range(BITS)])


def planted(seed: int = 0) -> tuple[inlay.Model, Tensor, Tensor]:
    """The planted Llama, U and W [32, 3]."""
    draws = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=draws)).Q
    u, w, rest = basis.split([BITS, BITS, WIDTH - 2 * BITS], dim=1)
    hf = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VALUES * VALUES * COPIES,
            hidden_size=WIDTH,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=32,
            tie_word_embeddings=False,
            pad_token_id=0,
        )
    ).eval()
    embed, head = hf.model.embed_tokens.weight, hf.lm_head.weight
    with torch.no_grad():
        head.zero_()
        for c in range(VALUES):
            head[c] = 3 * u @ bits(c)
            for s in range(VALUES):
                mean = u @ bits(c) + w @ bits(s)
                noise = torch.randn(COPIES, rest.shape[1], generator=draws) @ rest.T
                embed[token(c, s, 0) : token(c, s, 0) + COPIES] = mean + noise
        for block in hf.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
    return inlay.load(hf), u, w


def token(c: int, s: int, copy: int) -> int:
    """The id of a pair's copy."""
    return (c * VALUES + s) * COPIES + copy


def pair() -> CausalModel:
    """Inputs c, s and the copy; the answer is c."""
    return CausalModel(
        ["c", "s", "copy", "answer"],
        values={"c": range(VALUES), "s": range(VALUES), "copy": range(COPIES)},
        parents={"answer": ["c"]},
        functions={"answer": lambda c: c},
    )


def pairs(n: int, variables: list[Any], seed: int, **more: Any) -> list[Counterfactual]:
    """Counterfactual data of the planted Llama; a prompt is two tokens, of which the last counts."""

    def prompt(v: dict[str, Any]) -> list[int]:
        return [token(v["s"], v["c"], v["copy"]), token(v["c"], v["s"], v["copy"])]

    return counterfactuals(pair(), n, variables, prompt, lambda v: v["answer"], seed=seed, **more)


ENTITIES = 16


class Differences(nn.Module):
    """relu([a - b, b - a, c - d, d - c]) of four points, at every position of a row."""

    def forward(self, h: Tensor) -> Tensor:
        a, b, c, d = h.unbind(1)
        found = torch.cat([a - b, b - a, c - d, d - c], -1).relu()
        return found[:, None].expand(-1, 4, -1)


class Compare(nn.Module):
    """With p and q the sums of the two halves: [relu(p - q), relu(q - p), p + q]."""

    def forward(self, h: Tensor) -> Tensor:
        p, q = h[..., :4].sum(-1), h[..., 4:].sum(-1)
        return torch.stack([(p - q).relu(), (q - p).relu(), p + q], -1)


class Equality(nn.Module):
    """Ids [rows, 4] to logits [rows, 4, 2]: of false and of true."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(ENTITIES, 2, dtype=torch.float64)
        nn.init.normal_(self.embed.weight, generator=torch.Generator().manual_seed(0))
        self.blocks = nn.ModuleList([Differences(), Compare()])
        self.head = nn.Linear(3, 2, dtype=torch.float64)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[1, 1, -0.999999], [0, 0, 0]]))
            self.head.bias.copy_(torch.tensor([-1e-14, 0]))

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids)
        for block in self.blocks:
            h = block(h)
        return self.head(h)


def equality() -> inlay.Model:
    """The equality network, with `resid_post` and `logits`."""
    sites = {"resid_post": "blocks.{layer}:out", "logits": "head:out"}
    return inlay.load(Equality(), sites=sites, example=torch.tensor([[0, 1, 2, 3]]))


def hierarchy() -> CausalModel:
    """WX: the first two are equal; YZ: the other two are; the answer: WX = YZ."""
    entities = range(ENTITIES)
    return CausalModel(
        ["W", "X", "Y", "Z", "WX", "YZ", "same"],
        values=dict.fromkeys("WXYZ", entities),
        parents={"WX": ["W", "X"], "YZ": ["Y", "Z"], "same": ["WX", "YZ"]},
        functions=dict.fromkeys(["WX", "YZ", "same"], lambda one, other: one == other),
    )


def entities(rng: Random) -> dict[str, int]:
    """Four entities; each pair is equal half of the time."""
    found = {}
    for one, other in ("WX", "YZ"):
        found[one] = rng.randrange(ENTITIES)
        found[other] = found[one] if rng.random() < 0.5 else rng.choice([e for e in range(ENTITIES) if e != found[one]])
    return found


def quadruples(n: int, seed: int = 0) -> list[Counterfactual]:
    """Counterfactual data of the equality network: WX, YZ and both are set."""
    variables = ["WX", "YZ", ("WX", "YZ")]
    return counterfactuals(hierarchy(), n, variables, lambda v: [v[k] for k in "WXYZ"], sample=entities, seed=seed)
