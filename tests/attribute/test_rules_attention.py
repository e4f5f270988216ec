"""The attention rule: two calls of a model's own function against a softmax written out; what temperature is for."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward as gemma2_eager
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward as gpt_oss_eager
from transformers.models.llama.modeling_llama import eager_attention_forward as llama_eager

from inlay.attribute.attention_rule import AttentionRule
from inlay.attribute.interaction import interactions
from inlay.attribute.report import Row
from inlay.attribute.rules import RuleSet
from inlay.errors import RuleError


class Attention(nn.Module):
    """What an attention function looks at in its module."""

    def __init__(self, groups: int = 1, sinks: Tensor | None = None) -> None:
        super().__init__()
        self.num_key_value_groups, self.is_causal = groups, True
        if sinks is not None:
            self.sinks = sinks
        self.eval()


def rule(module: nn.Module, **fields: Any) -> AttentionRule:
    row = Row("attention", "attn", "Attention")
    return AttentionRule(RuleSet("test", **fields), {id(module): row}, lambda other: None)


class Softmax(torch.autograd.Function):
    """softmax(S) whose backward is P_T (dP - sum(P_T dP)), with P_T = softmax(S / T) written out."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, T: float) -> Tensor:
        ctx.save_for_backward((scores / T).softmax(-1).nan_to_num())
        return scores.softmax(-1).nan_to_num()

    @staticmethod
    def backward(ctx: Any, dP: Tensor) -> tuple[Tensor, None]:
        (P_T,) = ctx.saved_tensors
        return P_T * (dP - (P_T * dP).sum(-1, keepdim=True)), None


def written_out(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, T: float, scale: float, cap: float = 0, sinks: Any = None
) -> Tensor:
    """Attention [R, T, H, hd] from repeated heads, with the pattern in memory."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q @ k.mT * scale
    if cap:
        scores = cap * torch.tanh(scores / cap)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    if sinks is not None:
        column = sinks.reshape(1, -1, 1, 1).expand(q.shape[0], -1, q.shape[2], 1)
        scores = torch.cat([scores, column], -1)
    pattern = Softmax.apply(scores, T)[..., : k.shape[2]]
    return (pattern @ v).transpose(1, 2)


def tensors(H: int = 4, KV: int = 2, T: int = 7, hd: int = 8, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    made = torch.Generator().manual_seed(1)
    shapes = ((2, H, T, hd), (2, KV, T, hd), (2, KV, T, hd))
    return [(1.5 * torch.randn(s, generator=made, dtype=torch.float64)).to(dtype).requires_grad_() for s in shapes]


def causal(T: int = 7, window: int = 99) -> Tensor:
    age = torch.arange(T)[:, None] - torch.arange(T)[None]
    return ((age >= 0) & (age < window))[None, None].expand(2, 1, T, T)


def additive(allowed: Tensor, low: float) -> Tensor:
    return torch.zeros(allowed.shape, dtype=torch.float64).masked_fill(~allowed, low)


def padded() -> Tensor:
    """The second row's first three positions are padding: their own rows see nothing."""
    mask = causal().clone()
    mask[1, :, :, :3] = False
    return mask


ALIBI = -0.3 * (torch.arange(7)[:, None] - torch.arange(7)[None]).abs().double()
MASKS = {
    "none": None,
    "boolean": causal(),
    "window": causal(window=3),
    "fully masked rows": padded(),
    "-inf": additive(causal(), -math.inf),
    "finfo.min": additive(causal(), torch.finfo(torch.float64).min),
    "alibi": additive(causal(), -math.inf) + ALIBI,
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_two_calls_over_sdpa_are_the_pattern_written_out(mask: Tensor | None) -> None:
    module, (q, k, v) = Attention(groups=2), tensors()
    plain = sdpa_attention_forward(module, q, k, v, mask, scaling=0.3)[0]
    out, _ = rule(module, softmax=2.0).attend(sdpa_attention_forward, module, q, k, v, mask, scaling=0.3)
    assert torch.equal(out, plain)
    want = written_out(q, k, v, causal() if mask is None else mask, 2.0, 0.3)
    dO = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=out.dtype)
    have, should = (torch.autograd.grad((x * dO).sum(), (q, k, v)) for x in (out, want))
    for a, b in zip(have, should, strict=True):
        assert a.isfinite().all()
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("T", [1.5, 2.0, 10.0])
def test_soft_caps_and_windows_over_the_familys_own_eager_function(T: float) -> None:
    module, (q, k, v) = Attention(groups=2), tensors()
    mask = additive(causal(window=4), torch.finfo(torch.float64).min)
    options = {"scaling": 0.4, "softcap": 3.0}
    plain = gemma2_eager(module, q, k, v, mask, **options)[0]
    out, _ = rule(module, softmax=T).attend(gemma2_eager, module, q, k, v, mask, **options)
    assert torch.equal(out, plain)
    want = written_out(q, k, v, mask, T, 0.4, cap=3.0)
    have, should = (torch.autograd.grad(x.square().sum(), (q, k, v)) for x in (out, want))
    for a, b in zip(have, should, strict=True):  # transformers takes this softmax in float32
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_sinks_that_the_module_holds_are_cooled_with_the_scores() -> None:
    sinks = torch.tensor([0.3, -1.0, 2.0, 0.5], dtype=torch.float64)
    module, (q, k, v) = Attention(groups=2, sinks=sinks), tensors()
    mask = additive(causal(), torch.finfo(torch.float64).min)
    out, _ = rule(module, softmax=2.0).attend(gpt_oss_eager, module, q, k, v, mask, scaling=0.4)
    assert torch.equal(out, gpt_oss_eager(module, q, k, v, mask, scaling=0.4)[0])
    assert module.sinks is sinks
    want = written_out(q, k, v, mask, 2.0, 0.4, sinks=sinks)
    have, should = (torch.autograd.grad(x.square().sum(), (q, k, v)) for x in (out, want))
    for a, b in zip(have, should, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("softmax", [1.0, 2.0, "detached"])
def test_an_open_pattern_has_the_same_gradient_and_its_own(softmax: Any) -> None:
    module, (q, k, v) = Attention(groups=2), tensors()
    mask, fields = additive(causal(), -1e30), {"softmax": softmax, "qkv": (0.25, 0.25, 0.5)}
    standing = rule(module, **fields)
    closed, _ = standing.attend(llama_eager, module, q, k, v, mask, scaling=0.4)
    opened, pattern = standing.attend_open(llama_eager, module, q, k, v, mask, scaling=0.4)
    assert pattern is not None and torch.equal(closed, opened)
    dO = torch.randn(opened.shape, generator=torch.Generator().manual_seed(2), dtype=opened.dtype)
    reached = [v] if softmax == "detached" else [q, k, v]
    have = torch.autograd.grad((opened * dO).sum(), [*reached, pattern])
    should = torch.autograd.grad((closed * dO).sum(), reached)
    for a, b in zip(have, should, strict=False):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(have[-1], dO.transpose(1, 2) @ v.repeat_interleave(2, 1).mT, rtol=1e-5, atol=1e-6)


def test_each_factor_is_on_its_own_gradient_before_heads_are_repeated() -> None:
    module, (q, k, v) = Attention(groups=2), tensors()
    out, _ = rule(module, qkv=(0.25, 0.125, 0.5)).attend(sdpa_attention_forward, module, q, k, v, None, scaling=0.3)
    plain = sdpa_attention_forward(module, q, k, v, None, scaling=0.3)[0]
    have, should = (torch.autograd.grad(x.square().sum(), (q, k, v)) for x in (out, plain))
    for a, b, factor in zip(have, should, (0.25, 0.125, 0.5), strict=True):
        torch.testing.assert_close(a, factor * b, rtol=1e-12, atol=0)


def test_bfloat16_keeps_its_bits_and_its_gradient_to_three_digits() -> None:
    module, (q, k, v) = Attention(groups=2), tensors(dtype=torch.bfloat16)
    out, _ = rule(module, softmax=2.0).attend(sdpa_attention_forward, module, q, k, v, None, scaling=0.3)
    assert torch.equal(out, sdpa_attention_forward(module, q, k, v, None, scaling=0.3)[0])
    have = torch.autograd.grad(out.float().sum(), (q, k, v))
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    should = torch.autograd.grad(written_out(*wide, causal(), 2.0, 0.3).sum(), wide)
    for a, b in zip(have, should, strict=True):
        assert (a.double() - b).norm() <= 0.02 * b.norm()


def test_a_function_that_ignores_its_scale_is_refused() -> None:
    def stubborn(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **kwargs: Any) -> tuple[Tensor, None]:
        return sdpa_attention_forward(module, q, k, v, mask, scaling=0.3)

    module, (q, k, v) = Attention(groups=2), tensors()
    with pytest.raises(RuleError, match=r"attn.*Attention.*temperature 2"):
        rule(module, softmax=2.0).attend(stubborn, module, q, k, v, None, scaling=0.3)


def test_dropout_is_refused() -> None:
    module, (q, k, v) = Attention(groups=2), tensors()
    with pytest.raises(RuleError, match=r"dropout 0\.1.*eval"):
        rule(module).attend(sdpa_attention_forward, module, q, k, v, None, scaling=0.3, dropout=0.1)


# -- what temperature is for: closed forms -----------------------------------------------------------------------------


def through(rows_a: Tensor, rows_v: Tensor, T: float) -> Tensor:
    """do/da [N, n] of o = softmax(a) . v, by the rule over SDPA: scores are q . k with q = 1, k = a."""
    module = Attention()
    q = torch.ones(len(rows_a), 1, 1, 1, dtype=torch.float64)
    k = rows_a[:, None, :, None].clone().requires_grad_()
    out, _ = rule(module, softmax=T).attend(
        sdpa_attention_forward, module, q, k, rows_v[:, None, :, None], None, scaling=1.0
    )
    return torch.autograd.grad(out.sum(), k)[0][:, 0, :, 0]


A = torch.tensor([[5.0, 5.0, *[0.0] * 8]], dtype=torch.float64)
V = torch.tensor([[1.0, 1.0, *[0.0] * 8]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("T", "slope"), [(1, 0.01278), (1.5, 0.05464), (2, 0.09304), (3, 0.12258), (5, 0.12045), (10, 0.10334)]
)
def test_a_redundant_key_regains_its_gradient_with_temperature(T: float, slope: float) -> None:
    assert through(A, V, float(T))[0, 0].item() == pytest.approx(slope, abs=5e-6)


@pytest.mark.parametrize(("T", "score"), [(1, 0.05111), (2, 0.37216), (3, 0.49030)])
def test_its_score_against_the_row_mean(T: float, score: float) -> None:
    assert (through(A, V, float(T)) * (A - A.mean()))[0, 0].item() == pytest.approx(score, abs=5e-6)


def test_the_two_keys_repair_each_other() -> None:
    pattern = A.softmax(-1).float()[None, None]
    where, single, joint = interactions(pattern, V.float()[None, None], threshold=0.1)
    assert where[:, :3].tolist() == [[0, 0, 0]] and set(where[0, 3:].tolist()) == {0, 1}
    assert single[0].tolist() == pytest.approx([0.0240, 0.0240], abs=5e-5)
    assert joint.item() == pytest.approx(0.5691, abs=5e-5)
    assert ((joint - single.sum(1)) / joint).item() == pytest.approx(0.916, abs=5e-4)


def shapley(a: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Exact Shapley values [N, n], the effects of single ablations [N, n] and the total [N] of a row's scores.

    The game: a key outside of the coalition has the row's mean score.
    """
    n = a.shape[1]
    inside = torch.tensor(list(itertools.product([False, True], repeat=n)))  # key j is bit n - 1 - j
    game = torch.stack([(torch.where(one, a, a.mean(1, keepdim=True)).softmax(-1) * v).sum(1) for one in inside], 1)
    weight = torch.tensor([1 / (n * math.comb(n - 1, s)) for s in range(n)], dtype=torch.float64)
    sizes, values = inside.sum(1), []
    for j in range(n):
        without = (~inside[:, j]).nonzero()[:, 0]
        gain = game[:, without + (1 << (n - 1 - j))] - game[:, without]
        values.append((gain * weight[sizes[without]]).sum(1))
    single = torch.stack([game[:, -1] - game[:, -1 - (1 << (n - 1 - j))] for j in range(n)], 1)
    return torch.stack(values, 1), single, game[:, -1] - game[:, 0]


def test_shapley_of_the_closed_form() -> None:
    values, _, total = shapley(A, V)
    assert values[0, [0, 1, 2, 9]].tolist() == pytest.approx([0.34285, 0.34285, 0.01101, 0.01101], abs=5e-6)
    assert total.item() == pytest.approx(0.77376, abs=5e-6)


def pearson(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def test_temperature_two_follows_shapley_where_four_keys_are_redundant() -> None:
    made = torch.Generator().manual_seed(0)
    a = torch.randn(60, 10, generator=made, dtype=torch.float64)
    v = 0.3 * torch.randn(60, 10, generator=made, dtype=torch.float64)
    a[:, :4] += 4
    v[:, :4] = 1 + 0.1 * torch.randn(60, 4, generator=made, dtype=torch.float64)
    values, single, _ = shapley(a, v)
    away = a - a.mean(1, keepdim=True)
    found = {T: pearson(through(a, v, T) * away, values) for T in (1.0, 2.0)}
    print(found, pearson(single, values))
    assert found[2.0] >= 0.94
    assert found[1.0] <= 0.75
    assert pearson(single, values) <= 0.60
