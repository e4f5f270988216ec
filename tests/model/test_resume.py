"""Resuming above stored states equals the whole forward, values and gradients, without the blocks below."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from tests.model import chat
from tests.model.by_hand import hooked
from tests.model.chat import LAYERS, WIDTH, block, ids
from torch import Tensor, nn

import inlay
from inlay import Ablate, Add, Bank, Edit, Swap
from inlay.errors import EditError, InputError, SiteError
from inlay.model import States, patch

PROMPTS = [ids("the harbor light falls and"), ids("calm sea"), ids("the captain and crew sail the old ship east")]
RESPONSES = ["falls and sings", "night", "goes with the tide"]
FAMILIES = ["llama", "gpt2", "gemma2", "falcon", "bloom", "mixtral", "opt"]
SITES = [f"{name}.{layer}" for name in ("resid_pre", "resid_post") for layer in range(LAYERS)]
every_family = pytest.mark.parametrize("family", FAMILIES)
every_site = pytest.mark.parametrize("site", SITES)


@cache
def model(family: str) -> inlay.Model:
    found = chat.wrapped(family)
    found.hf.requires_grad_(False)
    return found


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    yield
    assert patch.standing() == 0
    for family in FAMILIES:
        assert not any("forward" in m.__dict__ or m._forward_hooks for m in model(family).base.modules())


def cut(site: str) -> int:
    """How many blocks lie below a Site."""
    name, _, layer = site.partition(".")
    return int(layer) + (name == "resid_post")


def whole(family: str, prompts: list[list[int]], **more: Any) -> Any:
    """The Hugging Face model's own forward of a right-padded batch."""
    longest = max(map(len, prompts))
    rows = torch.tensor([row + [0] * (longest - len(row)) for row in prompts])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in prompts])
    return model(family).hf(input_ids=rows, attention_mask=mask, use_cache=False, **more)


class Calls:
    def __init__(self, *modules: nn.Module) -> None:
        self.counts = [0] * len(modules)
        self.handles = [
            m.register_forward_pre_hook(lambda *_, i=i: self.counts.__setitem__(i, self.counts[i] + 1))
            for i, m in enumerate(modules)
        ]

    def __enter__(self) -> list[int]:
        return self.counts

    def __exit__(self, *_: Any) -> None:
        for handle in self.handles:
            handle.remove()


def inside(family: str) -> list[nn.Module]:
    """A module in each block that runs whenever the block does."""
    hf = model(family).hf
    names = ("input_layernorm", "ln_1", "self_attn_layer_norm")
    return [next(m for n, m in block(hf, i).named_children() if n in names) for i in range(LAYERS)]


@every_family
@every_site
def test_resumed_logits_are_the_whole_forwards_bit_for_bit(family: str, site: str) -> None:
    m = model(family)
    with torch.no_grad():
        wanted = whole(family, PROMPTS).logits
        states = m.states(PROMPTS, site)
        assert states.hidden.shape == (3, 9, WIDTH) and len(states) == 3 and str(states.site) == site
        for _ in range(2):  # again and again from the same states
            found = m.resume(states)
            real = found.mask.bool()
            assert torch.equal(found.logits[real], wanted[real])


@every_family
@every_site
def test_states_are_what_a_hook_sees(family: str, site: str) -> None:
    m, seen, layer = model(family), [], int(site[-1])
    at = block(m.hf, layer)
    if site.startswith("resid_pre"):
        handle = at.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
    else:
        handle = at.register_forward_hook(lambda _, args, out: seen.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        whole(family, PROMPTS)
    handle.remove()
    states = m.states(PROMPTS, site)
    real = states.batch.mask.bool()
    assert torch.equal(states.hidden[real], seen[0][real])


@every_family
@every_site
def test_blocks_below_do_not_run(family: str, site: str) -> None:
    m, hf = model(family), model(family).hf
    with Calls(*inside(family)) as counts:
        states = m.states(PROMPTS, site)
        assert counts == [1] * cut(site) + [0] * (LAYERS - cut(site)), "and none above runs for the states"
        counts[:] = [0] * LAYERS
        m.resume(states)
        m.resume(states)
        assert counts == [0] * cut(site) + [2] * (LAYERS - cut(site))
    assert all("forward" not in module.__dict__ for module in hf.modules())


@every_family
@pytest.mark.parametrize("site", ["resid_pre.0", "resid_pre.1", "resid_post.1"])
def test_loss_and_gradient_of_a_trainable_vector_above(family: str, site: str) -> None:
    m, hf = model(family), model(family).hf
    rows = [row + ids(r) for row, r in zip(PROMPTS, RESPONSES, strict=True)]
    longest = max(map(len, rows))
    labels = torch.full((3, longest), -100)
    for i, (prompt, row) in enumerate(zip(PROMPTS, rows, strict=True)):
        labels[i, len(prompt) : len(row)] = torch.tensor(row[len(prompt) :])

    by_hand = torch.randn(WIDTH, requires_grad=True)
    last = [len(prompt) - 1 for prompt in PROMPTS]
    with hooked(block(hf, 2), lambda h, row, at: h + by_hand, lambda row, length: [last[row]]):
        wanted = whole(family, rows, labels=labels).loss
    wanted.backward()

    trained = nn.Parameter(by_hand.detach().clone())
    edit = Edit("resid_post.2", Add(trained), tokens="last")
    states = m.states(PROMPTS, site, responses=RESPONSES)
    found = m.resume(states, edit=edit, loss=True)
    found.loss.backward()
    torch.testing.assert_close(found.loss, wanted)
    torch.testing.assert_close(trained.grad, by_hand.grad)
    assert trained.grad.any()

    trained.grad = None
    m.forward(PROMPTS, responses=RESPONSES, edit=edit, loss=True).loss.backward()
    torch.testing.assert_close(trained.grad, by_hand.grad)


def test_training_on_states_is_training_on_prompts() -> None:
    """A few steps of minibatches by `pick`, against a hook on the whole model."""
    m, hf = model("llama"), model("llama").hf
    start, batches = torch.randn(WIDTH), [[0, 1], [2], [2, 0], [1]]
    target = ids("sea")[0]

    def train_by_hand() -> Tensor:
        v = start.clone().requires_grad_(True)
        step = torch.optim.SGD([v], lr=0.5)
        for batch in batches:
            step.zero_grad()
            with hooked(block(hf, 1), lambda h, *_: h + v, lambda row, length: range(length)):
                logits = whole("llama", [PROMPTS[i] for i in batch]).logits
            last = torch.tensor([len(PROMPTS[i]) - 1 for i in batch])
            (-logits[torch.arange(len(batch)), last].log_softmax(-1)[:, target]).sum().backward()
            step.step()
        return v.detach()

    trained = nn.Parameter(start.clone())
    step = torch.optim.SGD([trained], lr=0.5)
    states = m.states(PROMPTS, "resid_post.1")
    for batch in batches:
        step.zero_grad()
        out = m.resume(states.pick(batch), edit=Edit("resid_post.1", Add(trained)))
        last = out.mask.sum(1) - 1
        (-out.logits[torch.arange(len(batch)), last].log_softmax(-1)[:, target]).sum().backward()
        step.step()
    torch.testing.assert_close(trained.detach(), train_by_hand())
    assert not torch.equal(trained.detach(), start)


@every_family
def test_picked_rows_are_those_rows(family: str) -> None:
    m = model(family)
    states = m.states(PROMPTS, "resid_post.1", responses=RESPONSES)
    every = m.resume(states).logits
    for rows in ([2, 0], [1], [1, 1, 2], torch.tensor([0, 2])):
        part = states.pick(rows)
        assert isinstance(part, States) and len(part) == len(rows)
        found = m.resume(part)
        real = found.mask.bool()
        assert torch.equal(found.mask, states.batch.mask[torch.as_tensor(rows)])
        torch.testing.assert_close(found.logits[real], every[torch.as_tensor(rows)][real], rtol=1e-4, atol=1e-4)
    assert len(states) == 3


@every_family
@every_site
def test_edits_at_and_above_the_states(family: str, site: str) -> None:
    m = model(family)
    edit = Edit("resid_post.2", Add(torch.randn(WIDTH)), tokens="last2")
    if cut(site) < LAYERS:
        edit = edit + Edit("mlp_out.2", Ablate(torch.randn(WIDTH)))
    with torch.no_grad():
        wanted = m.forward(PROMPTS, edit=edit, read=["resid_post.2", "logits"])
        found = m.resume(m.states(PROMPTS, site), edit=edit, read=["resid_post.2", "logits"])
    real = found.mask.bool()
    assert torch.equal(found.logits[real], wanted.logits[real])
    for name in wanted.acts:
        assert torch.equal(found.acts[name], wanted.acts[name])
    assert found.touched == wanted.touched
    assert not torch.equal(found.logits[real], whole(family, PROMPTS).logits[real])


def test_an_edit_below_acts_on_the_states() -> None:
    m = model("llama")
    below, above = Edit("resid_post.0", Add(torch.randn(WIDTH)), "first2"), Edit("resid_post.2", Add(torch.ones(WIDTH)))
    with torch.no_grad():
        wanted = m.forward(PROMPTS, edit=below + above)
        found = m.resume(m.states(PROMPTS, "resid_post.1", edit=below), edit=above)
    real = found.mask.bool()
    assert torch.equal(found.logits[real], wanted.logits[real])


def test_an_edit_at_the_very_site_of_the_states() -> None:
    """Acting before they are kept, or after they are put back, is the same; both is twice."""
    m, v = model("llama"), torch.randn(WIDTH)
    for site in ("resid_post.1", "resid_pre.1", "resid_pre.0"):
        edit = Edit(site, Add(v))
        with torch.no_grad():
            wanted = m.forward(PROMPTS, edit=edit).logits
            real = m.states(PROMPTS, site).batch.mask.bool()
            assert torch.equal(m.resume(m.states(PROMPTS, site, edit=edit)).logits[real], wanted[real])
            assert torch.equal(m.resume(m.states(PROMPTS, site), edit=edit).logits[real], wanted[real])
            twice = m.forward(PROMPTS, edit=edit + edit).logits
            assert torch.equal(m.resume(m.states(PROMPTS, site, edit=edit), edit=edit).logits[real], twice[real])


def test_rows_and_strengths_follow_the_states() -> None:
    m, a, b = model("llama"), torch.randn(WIDTH), torch.randn(WIDTH)
    bank = Edit("resid_post.2", Bank([Add(a), Add(b)]))
    states = m.states(PROMPTS, "resid_post.1")
    with torch.no_grad():
        wanted = m.forward(PROMPTS, edit=bank, rows=[2, 0, 1], strength=[1.0, 1.0, -2.0]).logits
        found = m.resume(states, edit=bank, rows=[2, 0, 1], strength=[1.0, 1.0, -2.0]).logits
        part = m.resume(states.pick([2, 0]), edit=bank, rows=[1, 2], strength=[-2.0, 1.0]).logits
    real = states.batch.mask.bool()
    assert torch.equal(found[real], wanted[real])
    torch.testing.assert_close(part[real[[2, 0]]], wanted[[2, 0]][real[[2, 0]]], rtol=1e-4, atol=1e-4)


def test_a_source_runs_in_full() -> None:
    """Only the base resumes; its source has states of its own."""
    m, donors = model("llama"), [row[::-1] for row in PROMPTS]
    swap = Edit("resid_post.2", Swap(donors))
    with torch.no_grad():
        wanted = m.forward(PROMPTS, edit=swap).logits
        states = m.states(PROMPTS, "resid_post.1")
        found = m.resume(states, edit=swap).logits
    real = states.batch.mask.bool()
    assert torch.equal(found[real], wanted[real])


@pytest.mark.parametrize("site", ["resid_pre.1", "resid_post.1"])
def test_resumed_states_take_gradients_and_leave_none(site: str) -> None:
    m = model("llama")
    states = m.states(PROMPTS, site)
    assert not states.hidden.requires_grad and states.hidden.grad_fn is None
    kept = states.hidden.clone()
    v = nn.Parameter(torch.zeros(WIDTH))
    m.resume(states, edit=Edit("resid_post.1", Add(v)), loss=True).loss.backward()
    assert v.grad.any() and torch.equal(states.hidden, kept)
    assert all(p.grad is None for p in m.hf.parameters())


def test_the_model_is_whole_again_after_an_error() -> None:
    m = model("llama")
    states = m.states(PROMPTS, "resid_post.1")

    def fail(h: Tensor) -> Tensor:
        raise RuntimeError("the user's own")

    with pytest.raises(RuntimeError, match="the user's own"):
        m.resume(states, edit=Edit("resid_post.2", fail))
    with Calls(*inside("llama")) as counts, torch.no_grad():
        m.forward(PROMPTS)
    assert counts == [1] * LAYERS


def test_a_read_inside_a_resume_by_another_model_is_its_own() -> None:
    """States skip blocks in their own run alone: a whole forward inside it sees every block."""
    m = model("llama")
    seen: list[Tensor] = []

    def look(h: Tensor) -> Tensor:
        seen.append(model("gpt2").read(PROMPTS, "resid_post.1", "last")["resid_post.1"])
        return h + 1.0

    m.resume(m.states(PROMPTS, "resid_post.0"), edit=Edit("resid_post.1", look))
    assert torch.equal(seen[0], model("gpt2").read(PROMPTS, "resid_post.1", "last")["resid_post.1"])


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", ["resid_pre.2", "resid_post.1"])
@pytest.mark.parametrize(
    "below", ["resid_post.0", "mlp_out.1", "resid_pre.1", "z.0.h1", "q.1", "pattern.1", "resid_mid.0"]
)
def test_an_edit_below_the_states_raises(site: str, below: str) -> None:
    m = model("llama")
    states = m.states(PROMPTS, site)
    with pytest.raises(EditError, match=r"below|changed nothing"):
        m.resume(states, edit=Edit(below, inlay.Scale(0.5)))


def test_an_edit_of_the_embeddings_below_the_states_raises() -> None:
    """The embedding module may still run, but nothing of it reaches the states: to pass silently would be wrong."""
    m = model("llama")
    with pytest.raises(EditError, match="embed"):
        m.resume(m.states(PROMPTS, "resid_post.1"), edit=Edit("embed", inlay.Scale(0.5)))


def test_a_read_below_the_states_raises() -> None:
    m = model("llama")
    states = m.states(PROMPTS, "resid_post.1")
    for site in ("resid_post.0", "mlp_out.1", "embed"):
        with pytest.raises(SiteError, match=site):
            m.resume(states, read=site)


@pytest.mark.parametrize("site", ["resid_mid.1", "attn_out.0", "mlp_out.2", "z.1", "embed", "logits", "resid_post.*"])
def test_other_sites_cannot_be_resumed_from(site: str) -> None:
    with pytest.raises(SiteError, match=r"resumes at one 'resid_pre\.l' or 'resid_post\.l'"):
        model("llama").states(PROMPTS, site)


def test_sites_that_do_not_exist() -> None:
    m = model("llama")
    with pytest.raises(SiteError, match="layer 3 is out of range"):
        m.states(PROMPTS, "resid_post.3")
    assert str(m.states(PROMPTS, "resid_post.-1").site) == "resid_post.2"
    with pytest.raises(InputError, match="list of prompts is empty"):
        m.states([], "resid_post.1")


def test_states_of_another_model() -> None:
    """Of another width they cannot fit; the error says so before anything runs."""
    other = inlay.load(chat.tiny("llama", hidden_size=48))
    with pytest.raises(inlay.errors.InlayError, match="width"):
        model("llama").resume(other.states(PROMPTS, "resid_post.1"))
    deeper = inlay.load(chat.tiny("llama", num_hidden_layers=5))
    with pytest.raises(inlay.errors.InlayError, match="layer 4 is out of range"):
        model("llama").resume(deeper.states(PROMPTS, "resid_post.4"))
