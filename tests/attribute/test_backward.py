"""The context of the rules: what it leaves alone, what it composes with, and when it raises."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from tests.model.tiny import LAYERS, Record, frozen, padded, rows, tiny
from torch import Tensor, nn

import inlay
from inlay import Add, Edit
from inlay.attribute.backward import backward_rules
from inlay.attribute.rules import PRESETS, RuleSet
from inlay.errors import RuleError, RuleNotApplied
from inlay.model import patch

FAST = ("llama", "gpt2", "gemma2", "mixtral")
families = pytest.mark.parametrize("family", FAST)
INPUTS = padded(rows(7, 4), "left")


def logits(model: inlay.Model, embeds: Tensor | None = None, **inputs: Any) -> Tensor:
    given = dict(inputs or INPUTS)
    if embeds is not None:
        given.pop("input_ids")
        given["inputs_embeds"] = embeds
    return model.hf(**given).logits


def embeds(model: inlay.Model) -> Tensor:
    return model.hf.get_input_embeddings()(INPUTS["input_ids"]).detach().requires_grad_()


def gradient(model: inlay.Model, rules: Any = None, e: Tensor | None = None) -> Tensor:
    """Of one logit of the last position, to the embeddings."""
    e = embeds(model) if e is None else e
    if rules is None:
        return torch.autograd.grad(logits(model, e)[:, -1, 9].sum(), e)[0]
    with backward_rules(model, rules):
        out = logits(model, e)
    return torch.autograd.grad(out[:, -1, 9].sum(), e)[0]


# -- what stays --------------------------------------------------------------------------------------------------------


@families
@pytest.mark.parametrize(("preset", "side"), [*((preset, "left") for preset in PRESETS), ("gim", "right")])
def test_logits_keep_their_bits(family: str, preset: str, side: str) -> None:
    model, inputs = frozen(family), padded(rows(7, 4), side)
    e = model.hf.get_input_embeddings()(inputs["input_ids"]).requires_grad_()
    plain = logits(model, e, **inputs)
    with backward_rules(model, preset):
        bent = logits(model, e, **inputs)
        assert bent.requires_grad and torch.equal(bent, plain)
        with torch.no_grad():
            assert torch.equal(logits(model, e, **inputs), plain)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_bfloat16_keeps_its_bits(family: str) -> None:
    model = inlay.load(tiny(family).bfloat16().requires_grad_(False))
    plain = logits(model)
    e = embeds(model)
    with backward_rules(model, "gim") as report:
        out = logits(model, e)
    real = INPUTS["attention_mask"].bool()
    assert torch.equal(out[real], plain[real])
    assert torch.autograd.grad(out[:, -1, 9].sum(), e)[0].isfinite().all()
    assert all(abs(row.value - 1) <= 0.02 for row in report.of("norm") if row.value is not None)


@families
def test_nothing_is_left_behind(family: str) -> None:
    model = inlay.load(tiny(family))
    before, state = Record(model.hf), torch.get_rng_state()
    gradient(model, "gim")
    before.check()
    assert torch.equal(torch.get_rng_state(), state)
    assert patch.standing() == 0
    assert all(p.grad is None and p.requires_grad for p in model.hf.parameters())


def test_nothing_is_left_behind_by_an_exception() -> None:
    model = frozen("llama")
    before, plain = Record(model.hf), gradient(model)
    with pytest.raises(ZeroDivisionError), backward_rules(model, "gim"):
        logits(model)
        raise ZeroDivisionError
    before.check()
    assert patch.standing() == 0
    assert torch.equal(gradient(model), plain)


def test_nothing_is_left_behind_by_a_forward_that_fails() -> None:
    model = frozen("llama")
    before = Record(model.hf)
    with pytest.raises(IndexError), backward_rules(model, "gim"):
        model.hf(torch.tensor([[10_000]]))
    before.check()
    assert patch.standing() == 0


def test_a_rule_that_cannot_act_leaves_nothing() -> None:
    model = frozen("falcon")
    before = Record(model.hf)
    with pytest.raises(RuleError, match=r"attention rule cannot act in transformer\.h\.0.*falcon.*FalconAttention"):
        backward_rules(model, "gim").__enter__()
    before.check()
    assert patch.standing() == 0
    assert torch.isfinite(gradient(model, RuleSet("rest", "freeze", product=0.5))).all()


def test_a_padded_row_has_the_gradient_of_the_row_alone() -> None:
    model = frozen("llama")
    both = gradient(model, "gim")
    ids = INPUTS["input_ids"][1:, 3:]
    e = model.hf.get_input_embeddings()(ids).requires_grad_()
    with backward_rules(model, "gim"):
        out = model.hf(inputs_embeds=e).logits
    torch.testing.assert_close(both[1, 3:], torch.autograd.grad(out[0, -1, 9], e)[0][0], rtol=1e-4, atol=1e-6)
    assert (both[1, :3] == 0).all()


# -- what it composes with ---------------------------------------------------------------------------------------------


def test_an_edit_and_the_rules_stand_in_either_order() -> None:
    model = frozen("llama")
    edit = Edit("mlp_out.1", Add(torch.ones(model.width)))
    e = embeds(model)
    with model.edited(edit):
        plain = logits(model, e)
    found = []
    with model.edited(edit), backward_rules(model, "gim"):
        found.append(logits(model, e))
    with backward_rules(model, "gim"), model.edited(edit):
        found.append(logits(model, e))
    assert all(torch.equal(one, plain) for one in found)
    a, b = (torch.autograd.grad(one[:, -1, 9].sum(), e)[0] for one in found)
    assert torch.equal(a, b)
    assert not torch.equal(a, gradient(model, "gim"))


@families
def test_gradients_at_sites_are_those_of_the_rules(family: str) -> None:
    """The Sites' gradients of a read against those of plain autograd on tensors that a hook keeps."""
    model, prompts = frozen(family), rows(6, 6)
    block = model.sites().blocks[1]
    kept: list[Tensor] = []
    handle = model.base.get_submodule(block).register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    ids = torch.tensor(prompts)
    with backward_rules(model, "gim"):
        out = model.hf(inputs_embeds=model.hf.get_input_embeddings()(ids).requires_grad_(), use_cache=False).logits
        (want,) = torch.autograd.grad(out[:, -1, 9].sum(), kept[0])
        handle.remove()
        acts = model.read(prompts, "resid_pre.1", grads=lambda output: output.logits[:, -1, 9].sum())
    assert acts.gradients is not None
    torch.testing.assert_close(acts.gradients["resid_pre.1"], want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("preset", ["gim", "relp_ah"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_opened_attention_has_the_rules_too(family: str, preset: str) -> None:
    """z's gradient makes the pattern's (dP = dz v), and layer 0's are the same with the pattern open or closed."""
    model, prompts = frozen(family), rows(6, 6)
    loss = {"grads": lambda output: output.logits[:, -1, 9].sum()}
    with backward_rules(model, preset):
        opened = model.read(prompts, ["resid_pre.0", "z.1", "v.1", "pattern.1"], **loss)
        closed = model.read(prompts, ["resid_pre.0", "z.1"], **loss)
    assert opened.gradients is not None and closed.gradients is not None
    for site in ("resid_pre.0", "z.1"):
        torch.testing.assert_close(opened.gradients[site], closed.gradients[site], rtol=1e-4, atol=1e-6)
    values = opened["v.1"].repeat_interleave(2, 2)
    want = torch.einsum("rthd,rshd->rths", opened.gradients["z.1"], values)
    torch.testing.assert_close(opened.gradients["pattern.1"], want, rtol=1e-4, atol=1e-6)


def test_queries_have_attentions_factor_in_their_gradient() -> None:
    model, prompts = frozen("llama"), rows(6, 6)
    scaled = RuleSet("scaled", qkv=(0.25, 0.125, 0.5))
    loss = {"grads": lambda output: output.logits[:, -1, 9].sum()}
    last = LAYERS - 1
    sites = [f"{name}.{last}" for name in "qkv"]
    plain = model.read(prompts, sites, **loss).gradients
    with backward_rules(model, scaled):
        bent = model.read(prompts, sites, **loss).gradients
    assert plain is not None and bent is not None
    for site, factor in zip(sites, (0.25, 0.125, 0.5), strict=True):
        torch.testing.assert_close(bent[site], factor * plain[site], rtol=1e-5, atol=1e-8)


def test_a_pattern_is_edited_inside_the_rules() -> None:
    model, prompts = frozen("llama"), rows(6, 6)
    edit = Edit("pattern.1", inlay.Scale(0.5))
    plain = model(prompts, edit=edit).logits
    e = model.hf.get_input_embeddings()(torch.tensor(prompts)).requires_grad_()
    with backward_rules(model, "gim"), model.edited(edit):
        out = model.hf(inputs_embeds=e).logits
    assert torch.equal(out, plain)
    assert torch.autograd.grad(out[:, -1, 9].sum(), e)[0].abs().sum() > 0


def test_a_resumed_forward_has_the_rules() -> None:
    model, prompts = frozen("llama"), rows(6, 6)
    states = model.states(prompts, "resid_post.0")
    states.hidden.requires_grad_()
    with backward_rules(model, "gim") as report:
        out = model.resume(states).logits
        want = model.read(prompts, "resid_post.0", grads=lambda output: output.logits[:, -1, 9].sum()).gradients
    (have,) = torch.autograd.grad(out[:, -1, 9].sum(), states.hidden)
    assert want is not None
    torch.testing.assert_close(have, want["resid_post.0"], rtol=1e-5, atol=1e-7)
    assert report.forwards == 2


def test_generation_runs_inside() -> None:
    model = frozen("llama")
    plain = model.hf.generate(torch.tensor(rows(5)), max_new_tokens=3, do_sample=False)
    with backward_rules(model, "gim"):
        assert torch.equal(model.hf.generate(torch.tensor(rows(5)), max_new_tokens=3, do_sample=False), plain)


def test_two_threads_hold_different_rules_on_one_model() -> None:
    model = frozen("llama")
    want = {preset: gradient(model, preset) for preset in ("gim", "relp_ah")} | {"none": gradient(model)}
    barrier, found = threading.Barrier(3), {}

    def work(preset: str) -> None:
        e = embeds(model)
        for _ in range(3):
            barrier.wait()
            if preset == "none":
                found[preset] = gradient(model, None, e)
                barrier.wait()
                continue
            with backward_rules(model, preset):
                out = logits(model, e)
                barrier.wait()
            found[preset] = torch.autograd.grad(out[:, -1, 9].sum(), e)[0]

    threads = [threading.Thread(target=work, args=(preset,)) for preset in want]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for preset, g in want.items():
        assert torch.equal(found[preset], g), preset
    assert patch.standing() == 0


# -- checkpointing and training mode -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_backward_inside_has_the_rules(reentrant: bool) -> None:
    hf = tiny("llama").requires_grad_(False)
    model = inlay.load(hf)
    e = embeds(model)
    want = gradient(model, "gim", e)
    hf.gradient_checkpointing_enable({"use_reentrant": reentrant})
    hf.train()
    with backward_rules(model, "gim") as report:
        have = e.detach().requires_grad_()
        out = logits(model, have, **INPUTS, use_cache=False)
        out[:, -1, 9].sum().backward()
    assert have.grad is not None
    torch.testing.assert_close(have.grad, want, rtol=1e-5, atol=1e-7)
    assert {row.calls for row in report.of("norm")} == {1}  # recomputations do not count


def test_a_checkpointed_backward_outside_raises() -> None:
    hf = tiny("llama").requires_grad_(False)
    model = inlay.load(hf)
    hf.gradient_checkpointing_enable({"use_reentrant": False})
    hf.train()
    e = embeds(model)
    with backward_rules(model, "gim"):
        out = logits(model, e, **INPUTS, use_cache=False)
    with pytest.raises(RuleError, match="checkpointed forward ran after"):
        out[:, -1, 9].sum().backward()


@pytest.mark.parametrize("changes", [{"attention_dropout": 0.1}, {"family": "gpt2", "resid_pdrop": 0.1}])
def test_dropout_is_refused_on_entering_and_in_a_forward(changes: dict[str, Any]) -> None:
    family = changes.pop("family", "llama")
    model = frozen(family, **changes)
    with backward_rules(model, "gim"):
        logits(model)
        model.hf.train()
        with pytest.raises(RuleError, match=r"drops.*eval"):
            logits(model)
    with pytest.raises(RuleError, match=r"training mode.*0\.1"), backward_rules(model, "gim"):
        pass


def test_training_mode_without_dropout_is_fine() -> None:
    model = frozen("llama")
    want = gradient(model, "gim")
    model.hf.train()
    assert torch.equal(gradient(model, "gim"), want)


# -- what it reports ---------------------------------------------------------------------------------------------------


def test_the_report_names_every_module() -> None:
    model = frozen("llama")
    with backward_rules(model, "attnlrp") as report:
        logits(model)
        logits(model)
    norms = {n for n, m in model.hf.named_modules() if type(m).__name__ == "LlamaRMSNorm"}
    assert {row.path for row in report.of("norm")} == norms
    assert {row.path for row in report.of("attention")} == {f"model.layers.{i}.self_attn" for i in range(LAYERS)}
    assert {row.path for row in report.of("product")} == {f"model.layers.{i}.mlp" for i in range(LAYERS)}
    assert {row.path for row in report.of("activation")} == {f"model.layers.{i}.mlp.act_fn" for i in range(LAYERS)}
    assert {row.calls for row in report.rows} == {2} and report.forwards == 2
    assert {row.site for row in report.of("attention")} == {f"pattern.{i}" for i in range(LAYERS)}
    assert [row.site for row in report.of("norm")][-1] == "final_norm"
    assert "norm       LlamaRMSNorm x 7: freeze, 14 calls, self-test 1.0" in str(report)
    frame = report.frame()
    assert frame.columns == ["rule", "path", "kind", "site", "does", "calls", "value", "reason"]
    assert frame.height == len(report.rows)


def test_a_context_without_a_forward_raises() -> None:
    model = frozen("llama")
    for preset in ("gim", "grad"):
        with (
            pytest.raises(RuleNotApplied, match=r"hit nothing in this llama model: no forward"),
            backward_rules(model, preset),
        ):
            pass
    with pytest.raises(RuleNotApplied, match="in this thread"), backward_rules(model, "gim"):
        other = threading.Thread(target=logits, args=(model,))
        other.start()
        other.join()


def test_a_rule_whose_modules_no_forward_calls_raises() -> None:
    model = frozen("llama")
    message = r"the product rule.*3 modules \(LlamaMLP\)"
    with pytest.raises(RuleNotApplied, match=message) as caught, backward_rules(model, "gim"):
        for block in model.hf.model.layers:
            block.mlp.forward = lambda x: x
        logits(model)
    assert (caught.value.rule, caught.value.family, caught.value.seen) == ("product", "llama", ("LlamaMLP",))


class NoNorms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Embedding(8, 4), nn.ModuleList([nn.Linear(4, 4)])

    def forward(self, ids: Tensor) -> Tensor:
        return self.blocks[0](self.embed(ids))


def test_a_model_without_a_part_raises_on_entering() -> None:
    model = inlay.load(NoNorms(), sites={"resid_post": "blocks.{layer}:out"})
    with pytest.raises(RuleNotApplied, match="norm rule") as caught:
        backward_rules(model, RuleSet("norms", "freeze")).__enter__()
    assert caught.value.rule == "norm" and "Linear" in caught.value.seen
    with pytest.raises(RuleNotApplied, match="product rule"):
        backward_rules(model, RuleSet("products", product=0.5)).__enter__()


def test_rules_do_not_nest_on_one_model() -> None:
    model, other = frozen("llama"), frozen("gpt2")
    with backward_rules(model, "gim"):
        with pytest.raises(RuleError, match="already in force"), backward_rules(model, "grad"):
            pass
        with backward_rules(other, "attnlrp"):
            logits(other)
        logits(model)
    assert torch.equal(gradient(model, "gim"), gradient(model, "gim"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"norm": "frozen"}, "norm='frozen'"),
        ({"softmax": 0}, "softmax=0"),
        ({"qkv": (1, 2)}, "three factors"),
        ({"product": "half"}, "product='half'"),
        ({"activation": "identity"}, "activation='identity'"),
    ],
)
def test_a_rule_set_that_is_none_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RuleError, match=message):
        RuleSet("mine", **fields)


def test_an_unknown_preset_lists_those_there_are() -> None:
    with pytest.raises(RuleError, match=r"'gimm'.*grad, gim, attnlrp"):
        backward_rules(frozen("llama"), "gimm").__enter__()
