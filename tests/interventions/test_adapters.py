"""LoRA Edits beside peft's own adapters: the same logits both ways, and what no Edit holds is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.interventions import tiny
from tests.interventions.tiny import EVEN, INNER, WIDTH
from torch import nn

import inlay
from inlay import Add, Bank, Edit, LoRA, from_peft, to_peft
from inlay.errors import EditError
from inlay.interventions.lora import widths

peft = pytest.importorskip("peft")

PATHS = {
    "llama": ["model.layers.1.self_attn.o_proj", "model.layers.0.self_attn.q_proj", "model.layers.2.mlp.down_proj"],
    "gpt2": ["transformer.h.1.attn.c_attn", "transformer.h.0.mlp.c_fc", "transformer.h.2.mlp.c_proj"],
}
both = pytest.mark.parametrize("family", PATHS)


def _lora(*args: Any, **options: Any) -> LoRA:
    made = LoRA(*args, **options)
    nn.init.normal_(made.up, std=0.3, generator=torch.Generator().manual_seed(args[2]))
    return made


def _edit(hf: Any, family: str) -> Edit:
    """Three modules, of other ranks, scales and strengths."""
    edits = [
        Edit(
            f"module:{path}:out",
            _lora(*widths(hf.get_submodule(path)), 2 + i, alpha=[None, 16.0, 3.0][i], seed=i),
            strength=[None, 0.5, -2.0][i],
        )
        for i, path in enumerate(PATHS[family])
    ]
    return edits[0] + edits[1] + edits[2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@both
def test_peft_computes_what_the_edit_does(family: str, dtype: torch.dtype) -> None:
    hf = tiny.FAMILIES[family](dtype=dtype)
    model, edit = inlay.load(hf), _edit(hf, family).to(dtype).eval()
    before = {name: p.clone() for name, p in hf.named_parameters()}
    with torch.no_grad():
        want, plain = model.forward(EVEN, edit=edit).logits, model.forward(EVEN).logits
        made = to_peft(edit, model)
        got = made(**tiny.padded(EVEN)).logits
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12 if dtype == torch.float64 else 2e-5)
    assert float((want - plain).abs().max()) > 1.0
    assert all(torch.equal(before[name], p) for name, p in hf.named_parameters()) and not made.training


@pytest.mark.parametrize(
    "options", [{}, {"lora_alpha": 5, "use_rslora": True}, {"lora_alpha": 2, "lora_dropout": 0.25}]
)
@both
def test_an_adapter_that_peft_made_becomes_an_edit_bit_for_bit(family: str, options: dict[str, Any]) -> None:
    hf = tiny.FAMILIES[family](dtype=torch.float64)
    config = peft.LoraConfig(
        r=3, target_modules=PATHS[family], init_lora_weights=False, fan_in_fan_out=family == "gpt2", **options
    )
    made = peft.get_peft_model(tiny.FAMILIES[family](dtype=torch.float64), config, autocast_adapter_dtype=False).eval()
    edit = from_peft(made)
    assert [p.intervention.dropout for p in edit.parts] == [options.get("lora_dropout", 0.0)] * 3 and not edit.training
    with torch.no_grad():
        want = made(**tiny.padded(EVEN)).logits
        got = inlay.load(hf).forward(EVEN, edit=edit).logits
        plain = tiny.plain(hf, EVEN)
    # the Edit's tensors are float32, so those of peft are compared there
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    assert float((want - plain).abs().max()) > 0.05


@both
def test_there_and_back_is_the_same_edit(family: str, tmp_path: Path) -> None:
    hf = tiny.FAMILIES[family]()
    model, edit = inlay.load(hf), _edit(hf, family).eval()
    to_peft(edit, model).save_pretrained(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(tiny.FAMILIES[family](), tmp_path / "adapter")
    again = from_peft(loaded)
    mine = {str(part.site): part for part in edit.parts}
    assert {str(part.site) for part in again.parts} == mine.keys()
    for part in again.parts:
        one = mine[str(part.site)]
        assert torch.equal(part.intervention.down, one.intervention.down)
        assert torch.equal(part.intervention.up, one.intervention.up)
        assert part.intervention.scale() == one.intervention.scale() * (1.0 if one.strength is None else one.strength)
    with torch.no_grad():
        torch.testing.assert_close(model.forward(EVEN, edit=again).logits, model.forward(EVEN, edit=edit).logits)


def test_named_sites_are_adapted_and_a_scale_that_peft_was_set_to_is_kept() -> None:
    model = tiny.model()
    made = to_peft(Edit("q.1", _lora(WIDTH, WIDTH, 4, alpha=8.0, rslora=True)), model)
    assert made.peft_config["default"].use_rslora and made.training
    layer = made.get_base_model().model.layers[1].self_attn.q_proj
    assert layer.scaling["default"] == 4.0
    layer.set_scale("default", 0.3)
    (part,) = from_peft(made).parts
    assert part.intervention.scale() == pytest.approx(0.3 * 4.0, rel=1e-12)


SITE = "module:model.layers.1.mlp.down_proj:out"


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (lambda: Edit("resid_post.1", Add(torch.ones(WIDTH))), "peft holds LoRA, and a part of the Edit is Add"),
        (lambda: Edit(SITE, Bank([LoRA(INNER, WIDTH, 2)])), "is Bank"),
        (lambda: Edit(SITE, LoRA(INNER, WIDTH, 2), tokens="last"), "acts at every token"),
        (lambda: Edit("q.1.h0", LoRA(WIDTH, 8, 2)), "whole linear modules"),
        (lambda: Edit("mlp_out.1", LoRA(WIDTH, WIDTH, 2)), "linear modules, and LlamaMLP is none"),
        (lambda: Edit(SITE, LoRA(INNER, WIDTH, 2)) + Edit(SITE, LoRA(INNER, WIDTH, 3)), "one adapter a module"),
        (
            lambda: Edit(SITE, LoRA(INNER, WIDTH, 2)) + Edit("q.1", LoRA(WIDTH, WIDTH, 2, dropout=0.5)),
            r"one dropout for all modules, and these LoRAs have \[0.0, 0.5\]",
        ),
    ],
)
def test_what_peft_does_not_hold_is_refused(edit: Callable[[], Edit], match: str) -> None:
    with pytest.raises(EditError, match=match):
        to_peft(edit(), tiny.model())


def _adapted(**options: Any) -> Any:
    targets = options.pop("targets", ["q_proj"])
    return peft.get_peft_model(tiny.llama(), peft.LoraConfig(r=2, target_modules=targets, **options))


def _merged() -> Any:
    made = _adapted()
    made.merge_adapter()
    return made


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: from_peft(_adapted(), "other"), "no adapter 'other': default"),
        (lambda: from_peft(_adapted(use_dora=True)), "DoRA"),
        (lambda: from_peft(_adapted(lora_bias=True)), "variants of LoRA"),
        (lambda: from_peft(_adapted(bias="lora_only")), "bias='lora_only'"),
        (lambda: from_peft(_adapted(modules_to_save=["lm_head"])), "modules_to_save"),
        (lambda: from_peft(_adapted(targets=["embed_tokens"])), "LoRA of an embedding"),
        (lambda: from_peft(_merged()), "unmerge_adapter"),
        (
            lambda: from_peft(peft.get_peft_model(tiny.llama(), peft.IA3Config(task_type="CAUSAL_LM"))),
            "LoRA alone is an Edit",
        ),
    ],
)
def test_adapters_that_no_edit_holds_are_refused(make: Callable[[], Any], match: str) -> None:
    with pytest.raises(EditError, match=match):
        make()


def test_one_scale_by_the_root_of_the_rank_among_others() -> None:
    hf = tiny.llama()
    model = inlay.load(hf)
    first, second = (
        Edit(f"module:{path}:out", _lora(*widths(hf.get_submodule(path)), 4, alpha=8.0, rslora=mine, seed=5))
        for path, mine in zip(PATHS["llama"][:2], (True, False), strict=True)
    )
    edit = (first + second).eval()
    made = to_peft(edit, model)
    want = model.forward(EVEN, edit=edit).logits
    torch.testing.assert_close(made(torch.tensor(EVEN)).logits, want, rtol=1e-4, atol=1e-4)
