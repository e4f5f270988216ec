"""The product and activation rules: dense MLPs, mixtures and shared experts against their products written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.model.families import FAMILIES, build
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GraniteMoeSharedConfig
from transformers.activations import ACT2FN

import inlay
from inlay.attribute.activation_rule import ratio_of
from inlay.attribute.backward import backward_rules
from inlay.attribute.rules import RuleSet
from inlay.errors import ModelError, RuleError
from inlay.model.feed_forward import feed_forwards, growth

ONLY_PRODUCT = RuleSet("product", product=0.5)
GATED = ("llama", "gemma2", "phi3", "glm4", "bitnet", "apertus", "gpt2", "opt", "starcoder2", "falcon_alibi", "bloom")
PLAIN = {"gpt2", "opt", "starcoder2", "falcon_alibi", "bloom", "apertus"}


def half(x: Tensor) -> Tensor:
    return (x + x.detach()) / 2


@pytest.mark.parametrize("family", GATED)
def test_growth_tells_a_gate_whatever_the_activation(family: str) -> None:
    """BitNet has a norm behind the gate, Apertus an activation that is quadratic."""
    model = inlay.load(build(family))
    path = model.sites().blocks[0]
    (part,) = feed_forwards(path, model.base.get_submodule(path))
    value = growth(part, model.width, torch.empty(0))
    assert value == pytest.approx(1 if family in PLAIN else 2, abs=1e-3)


def run(family: str, rules: RuleSet | str, path: str, *inputs: Any) -> tuple[Tensor, Any]:
    """What a module gives inside the rules' context, for inputs of its own, and the report."""
    model = inlay.load(build(family))
    with backward_rules(model, rules) as report:
        out = model.base.get_submodule(path)(*inputs)
        model.hf(torch.tensor([[3, 4, 5]]))
    return out, report


def states(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3)).requires_grad_()


def same_gradient(have: Tensor, want: Tensor, *to: Tensor) -> None:
    torch.testing.assert_close(have, want, rtol=1e-5, atol=1e-6)
    dy = torch.randn(have.shape, generator=torch.Generator().manual_seed(4))
    pairs = (torch.autograd.grad((y * dy).sum(), to) for y in (have, want))
    for a, b in zip(*pairs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_the_factor_on_the_input_is_the_half_rule_at_the_product(family: str) -> None:
    x, mlp = states(2, 3, 48), build(family).model.layers[1].mlp
    if family == "phi3":
        gate, up = mlp.gate_up_proj(x).chunk(2, -1)
    else:
        gate, up = mlp.gate_proj(x), mlp.up_proj(x)
    want = mlp.down_proj(half(F.silu(gate) * up))
    have, _ = run(family, ONLY_PRODUCT, "model.layers.1.mlp", x)
    same_gradient(have, want, x)


def mixture(block: Any, x: Tensor) -> Tensor:
    """A Mixtral-like mixture with both of its products halved: act(gate) * up, and expert * router weight."""
    flat = x.view(-1, x.shape[-1])
    _, weights, chosen = block.gate(flat)
    out = torch.zeros_like(flat)
    for slot in range(weights.shape[1]):
        each = []
        for row, expert in zip(flat, chosen[:, slot], strict=True):
            gate, up = (block.experts.gate_up_proj[expert] @ row).chunk(2)
            each.append(block.experts.down_proj[expert] @ half(F.silu(gate) * up))
        out = out + half(torch.stack(each) * weights[:, slot, None])
    return out.view_as(x)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_a_mixture_of_experts_is_its_products_written_out(family: str) -> None:
    x, block = states(2, 3, 48), build(family).model.layers[1].mlp
    have, report = run(family, ONLY_PRODUCT, "model.layers.1.mlp", x)
    same_gradient(have, mixture(block, x), x)
    assert {row.does for row in report.of("product")} == {"gradient of the input x 0.25, 0.5"}


def test_a_shared_expert_and_its_gate_are_products_too() -> None:
    x, block = states(2, 3, 48), build("qwen2_moe").model.layers[1].mlp
    shared = block.shared_expert
    own = shared.down_proj(half(F.silu(shared.gate_proj(x)) * shared.up_proj(x)))
    want = mixture(block, x) + half(torch.sigmoid(block.shared_expert_gate(x)) * own)
    have, _ = run("qwen2_moe", ONLY_PRODUCT, "model.layers.1.mlp", x)
    same_gradient(have, want, x)


def test_cp_lrp_holds_a_mixtures_gates_and_weights() -> None:
    x, block = states(2, 3, 48), build("mixtral").model.layers[1].mlp
    flat = x.view(-1, 48)
    _, weights, chosen = block.gate(flat)
    out = torch.zeros_like(flat)
    for slot in range(2):
        each = []
        for row, expert in zip(flat, chosen[:, slot], strict=True):
            gate, up = (block.experts.gate_up_proj[expert] @ row).chunk(2)
            each.append(block.experts.down_proj[expert] @ (F.silu(gate).detach() * up))
        out = out + torch.stack(each) * weights[:, slot, None].detach()
    have, _ = run("mixtral", "cp_lrp", "model.layers.1.mlp", x)
    same_gradient(have, out.view_as(x), x)


NAMES = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "quick_gelu", "relu", "relu2", "mish", "linear")


@pytest.mark.parametrize("name", NAMES)
def test_the_ratio_of_an_activation_is_its_value_over_its_input(name: str) -> None:
    module = ACT2FN[name]
    ratio, error = ratio_of(module, "act")
    assert error < 1e-6
    x = torch.linspace(-5, 5, 100, dtype=torch.float64)  # without 0
    torch.testing.assert_close(ratio(x), module(x) / x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "value"), [("silu", 0.5), ("gelu", 0.5), ("gelu_new", 0.5), ("relu", 0), ("relu2", 0)]
)
def test_the_ratio_is_finite_at_zero(name: str, value: float) -> None:
    assert ratio_of(ACT2FN[name], "act")[0](torch.zeros(1)).item() == value


def test_an_activation_whose_ratio_is_not_known_is_named() -> None:
    with (
        pytest.raises(RuleError, match=r"mlp\.act_fn.*XIELUActivation"),
        backward_rules(inlay.load(build("apertus")), "attnlrp"),
    ):
        pass
    with pytest.raises(RuleError, match="Tanh"):
        ratio_of(nn.Tanh(), "act")


def test_experts_without_an_activation_module_are_named() -> None:
    with (
        pytest.raises(RuleError, match=r"mlp\.experts \(GptOssExperts\)"),
        backward_rules(inlay.load(build("gpt_oss")), "attnlrp"),
    ):
        pass


class List(nn.Module):
    """A block whose experts are a list."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Module()
        self.mlp.experts = nn.ModuleList([nn.Linear(4, 4)])


class Missed(nn.Module):
    """A block with an MLP, and a gate beside it that nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Module()
        self.mlp.up_proj, self.mlp.act_fn, self.mlp.down_proj = nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 4)
        self.side = nn.Module()
        self.side.act = nn.GELU()


def test_an_activation_outside_of_every_part_is_named() -> None:
    with pytest.raises(ModelError, match=r"blocks\.0\.side \(Module\) applies GELU"):
        list(feed_forwards("blocks.0", Missed()))


def test_an_mlp_beside_a_mixture_is_found() -> None:
    config = GraniteMoeSharedConfig(
        vocab_size=64,
        hidden_size=48,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        shared_intermediate_size=32,
        num_local_experts=4,
        num_experts_per_tok=2,
    )
    model = inlay.load(AutoModelForCausalLM.from_config(config).eval().requires_grad_(False))
    with backward_rules(model, ONLY_PRODUCT) as report:
        model.hf(torch.tensor([[3, 4, 5]]))
    does = {row.path.rpartition("layers.0.")[2]: row.does for row in report.of("product")}
    assert does == {
        "block_sparse_moe.experts": "gradient of the input x 0.25, 0.5",
        "shared_mlp": "gradient of the input x 0.5",
    }


def test_a_list_of_experts_is_named() -> None:
    with pytest.raises(ModelError, match=r"blocks\.0\.mlp\.experts is a ModuleList"):
        list(feed_forwards("blocks.0", List()))


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_an_ungated_mlp_is_not_applicable(family: str) -> None:
    _, report = run(
        family, "gim", {"gpt2": "transformer.h.1.mlp", "opt": "model.decoder.layers.1.fc1"}[family], states(2, 3, 48)
    )
    assert [row.reason for row in report.of("product")] == ["no gate"] * 3
    assert "not applicable, no gate" in str(report)


def test_every_family_of_the_table_says_what_it_is() -> None:
    assert set(GATED) <= set(FAMILIES)
