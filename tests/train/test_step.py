"""Step and Frozen: log-probs and activations beside a forward of each row alone, with and without kept states."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.interventions import tiny
from tests.train.rows import logps_by_hand, ragged, step_of
from torch import nn

import inlay
from inlay import Add, Bank, Edit, Scale, When
from inlay.errors import TrainError
from inlay.model.sites import Site
from inlay.train.examples import Example, encode, fitting
from inlay.train.frozen import Frozen, lowest

DATA = ragged(6)


def added(site: str = "resid_post.1", size: float = 0.5) -> Edit:
    return Edit(site, Add(nn.Parameter(torch.linspace(-size, size, tiny.WIDTH))))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("cut", [None, "resid_post.1", "resid_pre.1"])
def test_log_probs_are_those_of_each_row_alone(family: str, cut: str | None) -> None:
    model = inlay.load(getattr(tiny, family)())
    step = step_of(model, added(), DATA, cut=None if cut is None else Site.parse(cut))
    factors = torch.linspace(-1, 2, len(DATA))
    chosen, rejected = step.run("chosen", "rejected", factor=[factors, None])
    for index, (example, factor) in enumerate(zip(DATA, factors.tolist(), strict=True)):
        with model.edited(added(), strength=factor):
            want = logps_by_hand(model.hf, example.prompt, example.chosen)
        with model.edited(added()):
            other = logps_by_hand(model.hf, example.prompt, example.rejected)
        torch.testing.assert_close(chosen.logps[index], want, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(rejected.logps[index], other, rtol=1e-5, atol=1e-5)
        plain = logps_by_hand(model.hf, example.prompt, example.rejected)
        torch.testing.assert_close(step.reference("rejected")[index], plain, rtol=1e-5, atol=1e-5)
    assert chosen.lengths.tolist() == [len(one.chosen) for one in DATA]
    assert rejected.totals.tolist() == [len(one.prompt) + len(one.rejected) for one in DATA]


def test_gradients_are_those_of_the_whole_forward() -> None:
    model = tiny.model()
    grads = []
    for cut in (None, Site("resid_post", 1)):
        edit = added()
        (ran,) = step_of(model, edit, DATA, cut=cut).run("chosen")
        ran.logps.sum().backward()
        grads.append(edit.parts[0].intervention.vector.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=1e-5)


def test_blocks_below_run_once() -> None:
    model = tiny.model()
    counts = [0, 0, 0]
    for index, block in enumerate(model.hf.model.layers):
        block.mlp.register_forward_hook(lambda *_, i=index: counts.__setitem__(i, counts[i] + 1))
    step = step_of(model, added(), DATA, cut=Site("resid_post", 1))
    step.frozen_model.keep(range(len(step.frozen_model.sequences)), logps=False)
    first = list(counts)
    for _ in range(3):
        step.run("chosen", "rejected")
    assert first == [1, 1, 0]
    assert counts == [1, 1, 3], "a forward above the states does not run what lies below"


def test_logits_are_aligned_with_the_response() -> None:
    model = tiny.model()
    (ran,) = step_of(model, added(), DATA, ("chosen",)).run("chosen", logits=True)
    assert ran.logits is not None and ran.mask.sum(1).tolist() == [len(one.chosen) for one in DATA]
    for index, example in enumerate(DATA):
        with model.edited(added()), torch.no_grad():
            logits = model.hf(torch.tensor([[*example.prompt, *example.chosen]])).logits[0]
        n = len(example.chosen)
        want = logits[len(example.prompt) - 1 : len(example.prompt) - 1 + n]
        torch.testing.assert_close(ran.logits[index, :n].detach(), want, rtol=1e-5, atol=1e-5)
    plain, mask = step_of(model, added(), DATA, ("chosen",)).frozen_logits("chosen")
    assert torch.equal(mask, ran.mask) and not torch.allclose(plain, ran.logits)


@pytest.mark.parametrize("cut", [None, "resid_post.1"])
@pytest.mark.parametrize("before", [False, True])
def test_reads_above_and_below_the_edit(cut: str | None, before: bool) -> None:
    model = tiny.model()
    step = step_of(model, added(), DATA, cut=None if cut is None else Site.parse(cut))
    sites = ["resid_post.0", "resid_post.1", "resid_post.2"]
    (ran,) = step.run("chosen", read=sites, before=before)
    frozen = step.frozen("chosen", sites)
    for index, example in enumerate(DATA):
        ids, n = [*example.prompt, *example.chosen], len(example.chosen)
        want = model.forward([ids], edit=added(), read=sites, before=before).acts
        plain = model.forward([ids], read=sites).acts
        for site in sites:
            got = ran.acts[site][index][ran.acts.mask[index]]
            torch.testing.assert_close(got, want[site][0, -n:], rtol=1e-5, atol=1e-5)
            kept = frozen[site][index][frozen.mask[index]]
            torch.testing.assert_close(kept, plain[site][0, -n:], rtol=1e-5, atol=1e-5)
            assert not kept.requires_grad


def test_frozen_activations_of_one_token() -> None:
    model = tiny.model()
    acts = step_of(model, added(), DATA).frozen("rejected", "resid_post.2", "last")
    assert acts["resid_post.2"].shape == (len(DATA), 1, tiny.WIDTH) and acts.mask is not None and acts.mask.all()
    want = model.read([one.prompt for one in DATA], "resid_post.2", "last")["resid_post.2"]
    torch.testing.assert_close(acts["resid_post.2"][:, 0], want, rtol=1e-5, atol=1e-5)


def test_contributions_add_up_to_means() -> None:
    step = step_of(tiny.model(), added(), DATA)
    values = torch.arange(6.0)
    assert step.per_row(values).sum() == values.mean()
    tokens = sum(len(one.rejected) for one in DATA)
    torch.testing.assert_close(step.per_token(values, "rejected").sum(), values.sum() / tokens)


def test_the_state_of_every_example() -> None:
    model = tiny.model()
    vectors = torch.randn(3, tiny.WIDTH)
    bank = Edit("resid_post.*", Bank([Add(nn.Parameter(v)) for v in vectors]))
    data = [replace(one, row=1 + i % 3) for i, one in enumerate(DATA)]
    step = step_of(model, bank, data)
    found = step.state()["vector"]
    assert found.shape == (6, 1, tiny.WIDTH) and torch.equal(found[:, 0], vectors[[0, 1, 2, 0, 1, 2]])
    assert step.sites == [Site("resid_post", i) for i in range(3)] and found.requires_grad
    alone = step_of(model, Edit("resid_post.1", Scale(nn.Parameter(torch.tensor(2.0)))), data).state()["factor"]
    assert alone.shape == (6, 1, 1) and bool((alone == 2).all())


def test_the_negative_of_the_strength_is_the_null_of_what_has_none() -> None:
    step = step_of(tiny.model(), added(), DATA)
    factors = torch.linspace(0.5, 2, len(DATA))
    (null,), (negative,) = step.run("chosen", null=True, factor=factors), step.run("chosen", factor=-factors)
    assert torch.equal(null.logps, negative.logps)
    (null,), (negative,) = step.run("chosen", null=True), step.run("chosen", factor=-1.0)
    assert torch.equal(null.logps, negative.logps)


@pytest.mark.parametrize(
    ("edit", "want"),
    [
        (lambda: added("resid_post.1") + added("resid_post.0"), "resid_post.0"),
        (lambda: added("resid_pre.1"), "resid_pre.1"),
        (lambda: added("attn_out.2"), "resid_pre.2"),
        (lambda: added("resid_mid.1") + added("resid_post.1"), "resid_pre.1"),
        (lambda: added("final_norm"), "resid_post.2"),
        (lambda: added("embed"), None),
        (lambda: Edit("module:model.layers.1.self_attn.o_proj:out", Scale(2.0)), "resid_pre.1"),
        (lambda: Edit("module:model.embed_tokens:out", Scale(2.0)), None),
        (
            lambda: Edit("resid_post.2", Scale(2.0), when=When("resid_post.0", torch.ones(tiny.WIDTH), above=0.0)),
            "resid_post.0",
        ),
    ],
)
def test_what_lies_below_an_edit(edit: Any, want: str | None) -> None:
    found = lowest(tiny.model(), edit())
    assert (found and str(found)) == want


def test_sequences_are_kept_once() -> None:
    model = tiny.model()
    frozen = Frozen(model, Site("resid_post", 0))
    rows = encode(model, [DATA[0], DATA[1], DATA[0]], ["chosen"])["chosen"]
    assert frozen.add(rows) == [0, 1, 0] and frozen.add(rows[1:2]) == [1] and len(frozen.sequences) == 2


def test_examples_that_do_not_fit() -> None:
    model = tiny.model()
    with pytest.raises(TrainError, match="example 1 has no 'rejected', and this objective runs 'rejected'"):
        encode(model, [DATA[0], Example([1], [2])], ["chosen", "rejected"])
    with pytest.raises(TrainError, match="example 0 has an empty response on its 'chosen' side"):
        encode(model, [Example([1], [])], ["chosen"])
    long = Example([1] * 20, [2] * 5)
    with pytest.raises(TrainError, match=r"example 1 has 20 \+ 5 tokens on its 'chosen' side, and 24 are allowed"):
        encode(model, [DATA[0], long], ["chosen"], max_tokens=24)
    assert fitting(model, [DATA[0], long, DATA[1]], 24) == [DATA[0], DATA[1]]


def test_prompt_and_response_are_tokenised_apart_and_end() -> None:
    model = inlay.load("tidepool")
    tokenizer = model.tokenizer
    row = encode(model, [Example("say hello", "the sea")], ["chosen"])["chosen"][0]
    prompt, response = row.ids[: row.prompt], row.ids[row.prompt :]
    assert prompt == model.encoder.rows("say hello")[0].ids
    assert response == (*tokenizer("the sea", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id)
    bare = encode(model, [Example("say hello", "the sea")], ["chosen"], end=False)["chosen"][0]
    assert bare.ids == row.ids[:-1]
