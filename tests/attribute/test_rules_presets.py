"""Every preset against a forward of the same weights with its constants written into it by hand, in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.attribute.test_rules_attention import Softmax
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import inlay
from inlay.attribute.backward import backward_rules

IDS = torch.tensor([[5, 9, 17, 33, 2, 40, 3], [21, 8, 60, 7, 11, 30, 4]])


@dataclass
class By:
    """What a preset holds constant, by hand."""

    freeze: bool = True
    T: float = 1.0
    detach_pattern: bool = False
    detach_qk: bool = False
    qkv: tuple[float, float, float] = (1, 1, 1)
    half_product: bool = False
    detach_gate: bool = False
    ratio: bool = False


BY_HAND = {
    "grad": By(freeze=False),
    "gim": By(T=2.0, qkv=(0.25, 0.25, 0.5), half_product=True),
    "attnlrp": By(qkv=(0.25, 0.25, 0.5), half_product=True, ratio=True),
    "cp_lrp": By(detach_qk=True, detach_gate=True),
    "transformer_lrp": By(detach_pattern=True),
    "relp": By(half_product=True, ratio=True),
    "relp_ah": By(detach_pattern=True, half_product=True, ratio=True),
}


def llama(layers: int = 2, seed: int = 0, eps: float = 1e-6) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        rms_norm_eps=eps,
    )
    hf = LlamaForCausalLM(config).double().eval().requires_grad_(False)
    for name, parameter in hf.named_parameters():
        if "norm" in name:
            parameter += 0.3 * torch.randn_like(parameter)
    return hf


def times(x: Tensor, factor: float) -> Tensor:
    return factor * x + (1 - factor) * x.detach()


def norm(module: Any, x: Tensor, by: By) -> Tensor:
    inverse = (x.square().mean(-1, keepdim=True) + module.variance_epsilon).rsqrt()
    return x * (inverse.detach() if by.freeze else inverse) * module.weight


def attention(module: Any, x: Tensor, rotary: Any, by: By) -> Tensor:
    split = (*x.shape[:2], -1, module.head_dim)
    q, k, v = (p(x).view(split).transpose(1, 2) for p in (module.q_proj, module.k_proj, module.v_proj))
    q, k = apply_rotary_pos_emb(q, k, *rotary)
    q, k, v = (times(one, factor) for one, factor in zip((q, k, v), by.qkv, strict=True))
    if by.detach_qk:
        q, k = q.detach(), k.detach()
    k, v = (one.repeat_interleave(2, 1) for one in (k, v))
    scores = q @ k.mT * module.head_dim**-0.5
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    pattern = Softmax.apply(scores.masked_fill(later, -torch.inf), by.T)
    pattern = pattern.detach() if by.detach_pattern else pattern
    return module.o_proj((pattern @ v).transpose(1, 2).flatten(2))


def mlp(module: Any, x: Tensor, by: By) -> Tensor:
    gate, up = module.gate_proj(x), module.up_proj(x)
    act = gate * torch.sigmoid(gate).detach() if by.ratio else F.silu(gate)
    act = act.detach() if by.detach_gate else act
    return module.down_proj(times(act * up, 0.5) if by.half_product else act * up)


def logits(hf: Any, embeds: Tensor, by: By) -> Tensor:
    """The whole model, [R, T, vocabulary]."""
    x = embeds
    rotary = hf.model.rotary_emb(x, torch.arange(x.shape[1])[None])
    for block in hf.model.layers:
        x = x + attention(block.self_attn, norm(block.input_layernorm, x, by), rotary, by)
        x = x + mlp(block.mlp, norm(block.post_attention_layernorm, x, by), by)
    return hf.lm_head(norm(hf.model.norm, x, by))


def gradient(hf: Any, preset: str) -> tuple[Tensor, Tensor, Tensor]:
    """The embeddings, their gradient of one logit of the last position under a preset, and all logits."""
    embeds = hf.get_input_embeddings()(IDS).requires_grad_()
    with backward_rules(inlay.load(hf), preset):
        out = hf(inputs_embeds=embeds).logits
    return embeds, torch.autograd.grad(out[:, -1, 7].sum(), embeds)[0], out


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
@pytest.mark.parametrize("preset", BY_HAND)
def test_a_preset_is_its_forward_by_hand(preset: str, kind: str) -> None:
    hf = llama()
    hf.set_attn_implementation(kind)
    plain = hf(inputs_embeds=hf.get_input_embeddings()(IDS)).logits
    embeds, have, out = gradient(hf, preset)
    assert torch.equal(out, plain)
    by_hand = logits(hf, embeds, BY_HAND[preset])
    torch.testing.assert_close(by_hand, plain, rtol=1e-5, atol=1e-5)
    (want,) = torch.autograd.grad(by_hand[:, -1, 7].sum(), embeds)
    assert (have - want).norm() <= 2e-6 * want.norm()  # transformers norms in float32


def test_presets_differ_from_each_other_by_more_than_they_err() -> None:
    hf = llama()
    found = {preset: gradient(hf, preset)[1] for preset in BY_HAND}
    for one in found:
        for other in found:
            if one < other:
                assert (found[one] - found[other]).norm() > 1e-2 * found[one].norm(), (one, other)


def test_grad_is_plain_autograd() -> None:
    hf = llama()
    embeds, have, _ = gradient(hf, "grad")
    plain = hf(inputs_embeds=embeds).logits
    assert torch.equal(have, torch.autograd.grad(plain[:, -1, 7].sum(), embeds)[0])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_relp_with_held_patterns_conserves_the_logit(seed: int) -> None:
    """Without biases and epsilon the bent network is homogeneous of degree 1 in its input: sum x . g = logit."""
    hf = llama(seed=seed, eps=0.0)
    embeds, have, out = gradient(hf, "relp_ah")
    sums = (embeds * have).sum((1, 2))
    torch.testing.assert_close(sums, out[:, -1, 7], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("preset", ["gim", "attnlrp", "transformer_lrp", "grad"])
def test_the_others_do_not_conserve_it(preset: str) -> None:
    hf = llama(eps=0.0)
    embeds, have, out = gradient(hf, preset)
    assert ((embeds * have).sum((1, 2)) - out[:, -1, 7]).abs().min() > 0.01
