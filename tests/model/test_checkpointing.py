"""Gradient checkpointing, of both kinds: gradients under edits equal those without it, wherever backward is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.model.tiny import LAYERS, MLP, WIDTH, Record, frozen, padded, rows, tiny
from torch import Tensor, nn

import inlay
from inlay import Add, Bank, Edit, Scale, Zero
from inlay.model import patch

BATCH = padded(rows(6, 4))
Grads = dict[str, Tensor | None]
kinds = pytest.mark.parametrize("reentrant", [False, True], ids=["saved", "reentrant"])


def vector(width: int = WIDTH, seed: int = 0) -> nn.Parameter:
    return nn.Parameter(torch.randn(width, generator=torch.Generator().manual_seed(seed)))


SITES: dict[str, Callable[[], Any]] = {
    "resid_pre.1": lambda: Add(vector()),
    "resid_mid.1": lambda: Add(vector()),
    "resid_post.1": lambda: Add(vector()),
    "attn_in.1": lambda: Add(vector()),
    "attn_out.1": lambda: Add(vector()),
    "mlp_in.1": lambda: Add(vector()),
    "mlp_out.1": lambda: Add(vector()),
    "mlp_act.1": lambda: Add(vector(MLP)),
    "q.1": lambda: Add(vector()),
    "z.1.h2": lambda: Add(vector(8)),
    "q_rot.1.h1": lambda: Add(vector(8)),
    "k_rot.1": lambda: Scale(nn.Parameter(torch.tensor(0.6))),
    "pattern.1": lambda: Scale(nn.Parameter(torch.tensor(0.6))),
}


def trained(reentrant: bool | None, family: str = "llama", **changes: Any) -> inlay.Model:
    """A model in training mode with checkpointing of one kind, or without (`None`); always the same weights."""
    hf = tiny(family, **changes).train()
    if reentrant is not None:
        hf.activation_checkpointing_enable({"use_reentrant": reentrant})
    return inlay.load(hf)


def inputs(model: inlay.Model) -> dict[str, Any]:
    embeds = model.hf.get_input_embeddings()(BATCH["input_ids"]).detach().requires_grad_(True)
    labels = BATCH["input_ids"].masked_fill(BATCH["attention_mask"] == 0, -100)
    return {
        "inputs_embeds": embeds, "labels": labels, "attention_mask": BATCH["attention_mask"],
        "position_ids": BATCH["position_ids"], "use_cache": False,
    }  # fmt: skip


def gradients(model: inlay.Model, edits: list[Edit], values: dict[str, Any]) -> Grads:
    found: Grads = {f"base.{n}": p.grad for n, p in model.hf.named_parameters()}
    for k, edit in enumerate(edits):
        found |= {f"edit{k}.{n}": p.grad for n, p in edit.named_parameters()}
        assert all(p.grad is not None for p in edit.parameters())
    return found | {"inputs_embeds": values["inputs_embeds"].grad}


def same(got: Grads, want: Grads) -> None:
    assert got.keys() == want.keys()
    for name, gradient in want.items():
        here = got[name]
        assert (here is None) == (gradient is None), name
        if gradient is not None and here is not None:
            torch.testing.assert_close(here, gradient, rtol=1e-5, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


def step(model: inlay.Model, edit: Edit, where: str, **more: Any) -> Grads:
    values = inputs(model)
    with model.edited(edit, **more) as run:
        loss = model.hf(**values).loss
        if where == "inside":
            loss.backward()
        touched = run.touched
    if where == "outside":
        loss.backward()
    assert run.touched == touched
    assert patch.standing() == 0
    return gradients(model, [edit], values)


def both(make: Callable[[], Edit], reentrant: bool, where: str, family: str = "llama", **more: Any) -> None:
    want = step(trained(None, family), make(), where, **more)
    assert sum(float(g.abs().sum()) > 0 for g in want.values() if g is not None) > LAYERS
    same(step(trained(reentrant, family), make(), where, **more), want)


@pytest.mark.parametrize("where", ["inside", "outside"])
@kinds
@pytest.mark.parametrize("site", SITES)
def test_gradients_equal_those_without_checkpointing(site: str, reentrant: bool, where: str) -> None:
    both(lambda: Edit(site, SITES[site](), tokens="first2+last1"), reentrant, where)


@kinds
@pytest.mark.parametrize("family", ["gpt2", "gemma2", "falcon"])
def test_other_families(family: str, reentrant: bool) -> None:
    places = inlay.load(tiny(family)).sites().places
    names = [n for n in ("resid_mid", "attn_out", "z", "q", "mlp_out", "pattern") if n in places]

    def make() -> Edit:
        parts = [Edit(f"{n}.1", Scale(nn.Parameter(torch.tensor(0.7))), tokens="last2") for n in names]
        return Edit.of(tuple(part for edit in parts for part in edit.parts))

    both(make, reentrant, "outside", family)


@pytest.mark.parametrize("where", ["inside", "outside"])
@kinds
def test_several_parts_in_one_block(reentrant: bool, where: str) -> None:
    def make() -> Edit:
        shared = Add(vector())
        return (
            Edit("resid_mid.1", shared)
            + Edit("attn_out.1", Scale(nn.Parameter(torch.tensor(1.5))))
            + Edit("resid_mid.1", Scale(nn.Parameter(torch.tensor(0.5))), tokens="last")
            + Edit("mlp_out.*", shared)
            + Edit("pattern.1", Scale(nn.Parameter(torch.tensor(0.5))))
        )

    both(make, reentrant, where)


@pytest.mark.parametrize("where", ["inside", "outside"])
@kinds
@pytest.mark.parametrize("site", ["attn_out.1", "attn_out.*", "resid_post.*"])
def test_a_trainable_bank(site: str, reentrant: bool, where: str) -> None:
    both(lambda: Edit(site, Bank([Add(vector(seed=k)) for k in range(3)])), reentrant, where, rows=[3, 1])


@kinds
def test_an_edit_on_each_side_of_a_part_of_the_layers(reentrant: bool) -> None:
    want = step(trained(None), Edit("mlp_out.*", Add(vector())), "outside")
    model = trained(None)
    model.hf.activation_checkpointing_enable({"use_reentrant": reentrant}, every_n_layers=2)
    same(step(model, Edit("mlp_out.*", Add(vector())), "outside"), want)


@kinds
def test_dropout_of_an_intervention_falls_alike_in_the_recomputation(reentrant: bool) -> None:
    def make() -> Edit:
        torch.manual_seed(7)
        return Edit("attn_out.1", nn.Sequential(nn.Dropout(0.5), nn.Linear(WIDTH, WIDTH))).train()

    both(make, reentrant, "outside")


@kinds
def test_two_forwards_then_two_backwards(reentrant: bool) -> None:
    def run(model: inlay.Model) -> list[Grads]:
        edit, found = Edit("attn_out.1", Add(vector()), tokens="last") + Edit("resid_mid.2", Add(vector())), []
        first, second = inputs(model), inputs(model)
        second["inputs_embeds"] = (second["inputs_embeds"].detach() * 2).requires_grad_(True)
        second["attention_mask"] = torch.ones_like(second["attention_mask"])
        with model.edited(edit):
            losses = [model.hf(**values).loss for values in (first, second)]
            losses[0].backward()
            found.append({n: None if g is None else g.clone() for n, g in gradients(model, [edit], first).items()})
        losses[1].backward()
        return [*found, gradients(model, [edit], second)]

    for got, want in zip(run(trained(reentrant)), run(trained(None)), strict=True):
        same(got, want)


# -- a backward belongs to its own forward -----------------------------------------------------------------------------


@kinds
def test_a_backward_inside_another_edit_recomputes_under_its_own(reentrant: bool) -> None:
    def run(model: inlay.Model) -> Grads:
        edits = [Edit("attn_out.1", Add(vector(seed=0))), Edit("attn_out.1", Add(vector(seed=1)))]
        values = inputs(model)
        with model.edited(edits[0]):
            first = model.hf(**values).loss
        with model.edited(edits[1]):
            second = model.hf(**values).loss
            (first + 2 * second).backward()
        return gradients(model, edits, values)

    same(run(trained(reentrant)), run(trained(None)))


@pytest.mark.parametrize("ran", [False, True], ids=["before its first forward", "after a forward"])
@kinds
def test_the_backward_of_an_unedited_forward_inside_an_edit_is_unedited(reentrant: bool, ran: bool) -> None:
    def run(model: inlay.Model) -> Grads:
        values = inputs(model)
        loss = model.hf(**values).loss
        with model.edited(Edit("attn_out.1", Zero())):
            if ran:
                model.hf(**BATCH, use_cache=False)
            loss.backward()
            model.hf(**BATCH, use_cache=False)
        return gradients(model, [], values)

    same(run(trained(reentrant)), run(trained(None)))


@pytest.mark.parametrize("where", ["inside", "between", "outside"])
@kinds
def test_nested_edits_keep_their_order_in_the_recomputation(reentrant: bool, where: str) -> None:
    def run(model: inlay.Model) -> Grads:
        edits = [
            Edit("attn_out.1", Scale(nn.Parameter(torch.tensor(3.0)))),
            Edit("attn_out.1", Add(vector())) + Edit("resid_mid.1", Scale(nn.Parameter(torch.tensor(0.5)))),
        ]
        values = inputs(model)
        with model.edited(edits[0]):
            with model.edited(edits[1]):
                loss = model.hf(**values).loss
                if where == "inside":
                    loss.backward()
            if where == "between":
                loss.backward()
        if where == "outside":
            loss.backward()
        return gradients(model, edits, values)

    same(run(trained(reentrant)), run(trained(None)))


# -- a frozen base -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("required", [True, False], ids=["inputs require grad", "nothing else requires grad"])
@kinds
@pytest.mark.parametrize("site", ["resid_post.0", "attn_out.0", "resid_mid.1", "mlp_out.1"])
def test_a_frozen_base(site: str, reentrant: bool, required: bool) -> None:
    def run(reentrant: bool | None) -> Tensor:
        model = trained(reentrant)
        model.hf.requires_grad_(False)
        if required:
            model.hf.enable_input_require_grads()
        edit = Edit(site, Add(vector()))
        with model.edited(edit):
            loss = model.hf(**BATCH, labels=BATCH["input_ids"], use_cache=False).loss
        if reentrant is not None or loss.requires_grad:
            loss.backward()
        assert all(p.grad is None for p in model.hf.parameters())
        (parameter,) = edit.parameters()
        assert parameter.grad is not None
        return parameter.grad

    torch.testing.assert_close(run(reentrant), run(None), rtol=1e-5, atol=1e-7)


# -- reads -------------------------------------------------------------------------------------------------------------


@kinds
def test_reads_are_not_made_twice(reentrant: bool) -> None:
    sites = ["resid_pre.*", "resid_mid.*", "z.1", "pattern.1", "logits"]

    def run(model: inlay.Model) -> dict[str, Tensor]:
        edit = Edit("mlp_out.0", Add(vector()))
        out = model.forward(rows(6, 4), edit=edit, read=sites, loss=True)
        assert out.acts is not None and out.loss is not None
        kept = {name: values.detach().clone() for name, values in out.acts.items()}
        out.loss.backward()
        assert out.touched == [10]
        assert all(torch.equal(out.acts[name], values) for name, values in kept.items())
        return kept

    got, want = run(trained(reentrant)), run(trained(None))
    assert all(torch.equal(got[name], values) for name, values in want.items())


@pytest.mark.parametrize("sites", [["resid_post.*"], ["resid_mid.1", "z.1", "mlp_act.2", "embed", "pattern.0"]])
def test_gradients_of_sites_in_training_mode(sites: list[str]) -> None:
    want = trained(None).read(rows(6, 4), sites, grads=True)
    got = trained(False).read(rows(6, 4), sites, grads=True)
    assert want.gradients is not None and got.gradients is not None
    for site, gradient in want.gradients.items():
        assert float(gradient.abs().max()) > 0
        torch.testing.assert_close(got.gradients[site], gradient, rtol=1e-5, atol=1e-7)


@kinds
def test_the_checkpoint_function_is_given_back(reentrant: bool) -> None:
    model = trained(reentrant)
    model.hf(**BATCH, use_cache=False)
    record = Record(model.hf)
    values = inputs(model)
    with model.edited(Edit("attn_out.1", Scale(0.5)) + Edit("pattern.1", Scale(0.5))):
        loss = model.hf(**values).loss
    record.check()
    torch.autograd.grad(loss, values["inputs_embeds"]) if not reentrant else loss.backward()
    model.hf.zero_grad(set_to_none=True)
    record.check()


def test_a_model_in_eval_mode_is_not_checkpointed_and_generates_under_an_edit() -> None:
    model = frozen()
    want = model.generate(rows(5), edit=Edit("resid_post.1", Scale(1.5)), max_new_tokens=6, do_sample=False)
    model.hf.activation_checkpointing_enable({"use_reentrant": False})
    assert model.generate(rows(5), edit=Edit("resid_post.1", Scale(1.5)), max_new_tokens=6, do_sample=False) == want
