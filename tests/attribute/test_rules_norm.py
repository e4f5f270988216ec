"""The norm rule: Jacobians in closed form, both forms, the self-test, and that the self-test leaves nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.model.tiny import Record
from torch import Tensor, nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo.modeling_olmo import OlmoLayerNorm

from inlay.attribute import norm_rule
from inlay.attribute.norm_rule import settle
from inlay.errors import RuleError


def drawn(module: Any, seed: int = 0) -> Any:
    """The norm with weights away from 1 and biases away from 0."""
    made = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=made, dtype=parameter.dtype))
    return module


NORMS = {
    "llama": lambda: LlamaRMSNorm(16),
    "gemma": lambda: Gemma2RMSNorm(16),
    "olmo": lambda: OlmoLayerNorm(16),
    "LayerNorm": lambda: nn.LayerNorm(16),
    "LayerNorm without weights": lambda: nn.LayerNorm(16, elementwise_affine=False),
    "RMSNorm": lambda: nn.RMSNorm(16, eps=1e-5),
    "RMSNorm with its own eps": lambda: nn.RMSNorm(16),
}
CENTRED = ("olmo", "LayerNorm", "LayerNorm without weights")


def by_hand(name: str, module: Any, x: Tensor) -> Tensor:
    """(x - mu) / sg(sigma) w + b."""
    centred = x - x.mean(-1, keepdim=True) if name in CENTRED else x
    eps = getattr(module, "eps", None) or getattr(module, "variance_epsilon", None)
    eps = 1e-5 if name == "olmo" else torch.finfo(x.dtype).eps if eps is None else eps
    held = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt().detach()
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    held = held if weight is None else held * (1 + weight if name == "gemma" else weight)
    return held if bias is None else held + bias


@pytest.mark.parametrize("name", NORMS)
def test_a_held_norm_has_the_gradient_written_out(name: str) -> None:
    module = drawn(NORMS[name]())
    frozen, value = settle(module, "norm")
    assert value == pytest.approx(1, abs=1e-4)
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1)).mul(3).requires_grad_()
    y = frozen(module.forward, x)
    assert torch.equal(y, module(x))
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
    (have,) = torch.autograd.grad((y * dy).sum(), x)
    (want,) = torch.autograd.grad((by_hand(name, module, x) * dy).sum(), x)
    torch.testing.assert_close(have, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm", "llama", "gemma"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_pass_the_self_test_and_keep_their_bits(name: str, dtype: torch.dtype) -> None:
    module = drawn(NORMS[name]().to(dtype))
    frozen, value = settle(module, "norm")
    assert value == pytest.approx(1, abs=0.02)
    x = torch.randn(2, 16, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    y = frozen(module.forward, x)
    assert y.dtype == dtype and torch.equal(y, module(x))


def test_the_diagonal_of_a_held_rms_norm_is_y_over_x() -> None:
    module = drawn(LlamaRMSNorm(16))
    frozen, _ = settle(module, "norm")
    x = torch.randn(16, generator=torch.Generator().manual_seed(1))
    jacobian = torch.autograd.functional.jacobian(lambda one: frozen(module.forward, one), x)
    torch.testing.assert_close(jacobian, torch.diag(module(x) / x))


def test_a_norm_repairs_itself_and_the_rule_undoes_it() -> None:
    module = nn.RMSNorm(16, eps=0.0, dtype=torch.float64)
    x = torch.zeros(16, dtype=torch.float64)
    x[:3] = torch.tensor([10.0, 1.0, 1.0])
    without = x.clone()
    without[0] = 0
    assert module(x)[1].item() == pytest.approx(0.396059, abs=5e-7)
    assert module(without)[1].item() == pytest.approx(2.828427, abs=5e-7)
    plain = torch.autograd.functional.jacobian(module, x)[1]
    assert plain[:2].tolist() == pytest.approx([-0.038829, 0.392176], abs=5e-7)
    frozen, _ = settle(module, "norm")
    held = torch.autograd.functional.jacobian(lambda one: frozen(module.forward, one), x)[1]
    assert held[:2].tolist() == pytest.approx([0, 0.396059], abs=5e-7)


class Gated(LlamaRMSNorm):
    """A norm whose output a gate multiplies, as those of linear attention are."""

    def forward(self, hidden_states: Tensor, gate: Tensor) -> Tensor:
        return super().forward(hidden_states) * nn.functional.silu(gate)


def test_a_norm_with_a_gate_is_held() -> None:
    module = drawn(Gated(16))
    frozen, value = settle(module, "norm")
    assert value == pytest.approx(1, abs=1e-4)
    made = torch.Generator().manual_seed(1)
    x, gate = (torch.randn(3, 16, generator=made).requires_grad_() for _ in range(2))
    have = torch.autograd.grad(frozen(module.forward, x, gate).sum(), (x, gate))
    want = torch.autograd.grad((by_hand("llama", module, x) * nn.functional.silu(gate)).sum(), (x, gate))
    torch.testing.assert_close(have, want, rtol=1e-5, atol=1e-6)


def test_the_self_test_tells_an_ordinary_norm() -> None:
    value = norm_rule._self_test(drawn(nn.LayerNorm(16)), lambda call, x: call(x), torch.float32, torch.device("cpu"))
    assert abs(value) < 1e-4


class GroupNorm(nn.Module):
    """Called a norm, and no LayerNorm: it divides by the largest entry."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(16))

    def forward(self, x: Tensor) -> Tensor:
        return x / x.abs().amax(-1, keepdim=True) * self.weight


def test_what_no_form_holds_is_refused() -> None:
    with pytest.raises(RuleError, match=r"blocks\.3\.norm \(GroupNorm\).*neither a LayerNorm nor an RMSNorm"):
        settle(GroupNorm(), "blocks.3.norm")


def test_weights_that_are_not_here_are_refused() -> None:
    with pytest.raises(RuleError, match="offloaded"):
        settle(nn.LayerNorm(16, device="meta"), "norm")


@pytest.mark.parametrize("name", ["llama", "LayerNorm"])
def test_the_self_test_leaves_nothing(name: str) -> None:
    module = drawn(NORMS[name]())
    calls: list[int] = []
    module.register_forward_hook(lambda *_: calls.append(1))
    before, state = Record(module), torch.get_rng_state()
    settle(module, "norm")
    before.check()
    assert torch.equal(torch.get_rng_state(), state)
    assert not calls
    assert all(p.grad is None for p in module.parameters())


def test_the_self_test_runs_once_a_module_and_keeps_none_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    import gc
    import weakref

    runs: list[int] = []
    own = norm_rule._self_test
    monkeypatch.setattr(norm_rule, "_self_test", lambda *args: runs.append(1) or own(*args))
    module = nn.RMSNorm(16, eps=1e-6)
    settle(module, "norm")
    first = len(runs)
    settle(module, "norm")
    assert len(runs) == first > 0
    alive = weakref.ref(module)
    del module
    gc.collect()
    assert alive() is None
