"""A norm with its denominator held is the norm at its states, and linear in their parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.model.families import FAMILIES, build
from torch import Tensor, nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo.modeling_olmo import OlmoLayerNorm

from inlay.causal.frozen_norm import FrozenNorm
from inlay.errors import SiteError

W = 12


def random(module: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return module.to(dtype)


MODULES: dict[str, Any] = {
    "layer norm": lambda: nn.LayerNorm(W),
    "layer norm, odd width": lambda: nn.LayerNorm(W + 1),
    "layer norm without bias": lambda: nn.LayerNorm(W, bias=False),
    "layer norm without weights": lambda: OlmoLayerNorm(W),
    "rms norm": lambda: LlamaRMSNorm(W),
    "rms norm, odd width": lambda: LlamaRMSNorm(W + 1),
    "rms norm of 1 + weight": lambda: Gemma2RMSNorm(W),
}
every_module = pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)


def width(module: nn.Module) -> int:
    return 13 if any(p.shape == (13,) for p in module.parameters()) else W


@every_module
def test_the_parts_of_a_state_are_worth_what_the_norm_makes_of_it(make: Any) -> None:
    module = random(make())
    parts = 3 * torch.randn(4, 5, width(module)) + torch.randn(4, 1, 1)
    whole, out = parts.sum(0), torch.randn(5, width(module)).double()
    norm = FrozenNorm.at(module, whole, "norm")
    worth = (norm.pullback(out) * parts.double()).sum(-1).sum(0) + (out * norm.bias).sum(-1)
    torch.testing.assert_close(worth, (out * module(whole).detach().double()).sum(-1), rtol=1e-5, atol=1e-5)


@every_module
def test_it_is_the_derivative_without_the_denominators_part(make: Any) -> None:
    """J c of the whole norm, plus what the denominator's own change takes away, which is along the centred state."""
    module = random(make())
    x, c, out = (torch.randn(3, width(module)) for _ in range(3))
    norm = FrozenNorm.at(module, x, "norm")
    through = torch.autograd.functional.jvp(module, x, c)[1].detach()
    centre = x - x.mean(-1, keepdim=True) if norm.centred else x
    normed = module(x).detach() - norm.bias.float()
    along = (centre * c).sum(-1, keepdim=True) / (centre.square().sum(-1, keepdim=True))
    expected = (out * (through + normed * along)).sum(-1)
    found = (norm.pullback(out.double()) * c).sum(-1)
    torch.testing.assert_close(found.float(), expected, rtol=1e-4, atol=1e-4)


def test_gain_bias_and_denominator_are_a_layer_norms_own() -> None:
    module = random(nn.LayerNorm(W))
    x = torch.randn(3, W)
    norm = FrozenNorm.at(module, x, "norm")
    assert norm.centred
    assert torch.equal(norm.bias, module.bias.detach().double())
    sigma = (x.var(-1, unbiased=False) + module.eps).sqrt()
    torch.testing.assert_close(
        norm.gain * norm.inverse[:, None], (module.weight.detach() / sigma[:, None]).double(), rtol=1e-5, atol=1e-6
    )


def test_an_rms_norm_takes_no_mean_out() -> None:
    norm = FrozenNorm.at(random(LlamaRMSNorm(W)), torch.randn(3, W), "norm")
    assert not norm.centred and not norm.bias.any()


def test_half_precision() -> None:
    module = random(LlamaRMSNorm(W), torch.bfloat16)
    x = torch.randn(3, W).bfloat16()
    norm, out = FrozenNorm.at(module, x, "norm"), torch.randn(3, W).double()
    expected = (out * module(x).detach().double()).sum(-1)
    torch.testing.assert_close((norm.pullback(out) * x.double()).sum(-1), expected, rtol=0.05, atol=0.05)


class Squashed(nn.Module):
    """A norm that is none: tanh(a x), as in transformers without normalisation (2503.10622)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(0.5 * x)


def test_what_is_no_norm_is_refused_by_name() -> None:
    with pytest.raises(SiteError, match=r"module 'model\.norm' \(Squashed\) is neither a LayerNorm nor an RMSNorm"):
        FrozenNorm.at(Squashed(), torch.randn(3, W), "model.norm")


def test_every_final_norm_of_the_families_is_one() -> None:
    kinds = set()
    for name in FAMILIES:
        hf = build(name)
        if "final_norm" not in FAMILIES[name].places:
            continue
        module = hf.get_submodule(FAMILIES[name].where("final_norm", None)[0])
        x = 2 * torch.randn(4, hf.get_input_embeddings().weight.shape[1])
        norm = FrozenNorm.at(module, x, name)
        kinds.add((norm.centred, bool(norm.bias.any())))
    assert kinds == {(True, True), (True, False), (False, False)}
