"""Every family of the engine under every preset: equal bits and a report of every module, or the reason why not."""

from __future__ import annotations

import pytest
import torch
from tests.model.families import FAMILIES, LAYERS, build
from torch import nn

import inlay
from inlay.attribute.backward import backward_rules
from inlay.attribute.rules import PRESETS, RuleSet
from inlay.errors import RuleError

IDS = torch.arange(3, 12)[None].repeat(2, 1)
MASK = torch.ones_like(IDS)
MASK[1, :3] = 0
CLOSED = [f for f, row in FAMILIES.items() if f == "bloom" or "pattern" not in row.places]  # no attention function
NO_RATIO = {"gpt_oss": "GptOssExperts", "apertus": "XIELUActivation"}


def called_norms(hf: nn.Module) -> tuple[set[str], list[torch.utils.hooks.RemovableHandle]]:
    """The paths of the modules that are called a norm and divide by a length, as hooks see them called."""
    found: set[str] = set()

    def hook(path: str) -> object:
        return lambda *_: found.add(path)

    inner = {n for n, m in hf.named_modules() if "Norm" in type(m).__name__ and not list(m.children())}
    return found, [hf.get_submodule(n).register_forward_hook(hook(n)) for n in inner]  # type: ignore[arg-type]


def check(family: str, kind: str | None, preset: str) -> None:
    hf = build(family, kind)
    model, rules = inlay.load(hf), PRESETS[preset]
    embeds = hf.get_input_embeddings()(IDS).requires_grad_()
    plain = hf(inputs_embeds=embeds, attention_mask=MASK).logits
    held = rules.activation == "ratio"
    if family in CLOSED and rules.attention:
        with pytest.raises(RuleError, match="is known to call an attention function of transformers"):
            backward_rules(model, rules).__enter__()
        rules = RuleSet("rest", rules.norm, product=rules.product, activation=rules.activation)
    if family in NO_RATIO and held:
        with pytest.raises(RuleError, match=NO_RATIO[family]):
            backward_rules(model, rules).__enter__()
        return
    found, handles = called_norms(hf)
    with backward_rules(model, rules) as report:
        out = hf(inputs_embeds=embeds, attention_mask=MASK).logits
    for handle in handles:
        handle.remove()
    assert torch.equal(out[MASK.bool()], plain[MASK.bool()])
    gradient = torch.autograd.grad(out[:, -1, 5].sum(), embeds)[0]
    assert gradient.isfinite().all() and gradient.abs().sum() > 0
    if rules.norm == "freeze":
        assert {row.path for row in report.of("norm")} == found
        assert all(row.calls and row.value == pytest.approx(1, abs=0.02) for row in report.of("norm"))
    if rules.attention:
        assert [row.calls for row in report.of("attention")] == [1] * LAYERS
    if rules.product != 1:
        paths = [row.path for row in report.of("product")]
        for block in model.sites().blocks:
            assert any(path == block or path.startswith(f"{block}.") for path in paths), block
        assert all(row.calls or row.reason for row in report.of("product"))
    if rules.activation == "ratio":
        assert all(row.calls for row in report.of("activation"))


@pytest.mark.parametrize("preset", ["gim", "cp_lrp"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral", "bloom", "gpt_oss"])
def test_a_family_is_ruled_or_says_why_not(family: str, preset: str) -> None:
    check(family, None, preset)


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("kind", ["eager", None])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_ruled_or_says_why_not(family: str, kind: str | None, preset: str) -> None:
    check(family, kind, preset)


def test_the_families_whose_attention_is_closed() -> None:
    assert CLOSED == [
        "gpt_neo",
        "falcon_grouped",
        "falcon_one_norm",
        "falcon_multi_query",
        "falcon_alibi",
        "bloom",
        "mpt",
    ]
