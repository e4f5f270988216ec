"""A part of an Edit acts only where its condition holds: row by row, token by token, and through a generation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.interventions import tiny
from tests.interventions.tiny import EVEN, RAGGED, WIDTH
from torch import Tensor, nn

import inlay
from inlay import Add, Edit, Scale, Swap, When
from inlay.errors import EditError, SiteError

V = torch.randn(WIDTH, generator=torch.Generator().manual_seed(1))
U = torch.randn(WIDTH, generator=torch.Generator().manual_seed(2))
UNIT = U / U.norm()


def _read(model: inlay.Model, rows: Any, site: str, **more: Any) -> Tensor:
    acts = model.forward(rows, read=site, **more).acts
    assert acts is not None
    return acts[site].detach()


def _expected(model: inlay.Model, rows: Any, mask: Tensor) -> Tensor:
    """Logits when the vector is added at layer 1 exactly where `mask` [rows, slots] says."""
    return model.forward(rows, edit=Edit("resid_post.1", Add(V), tokens=mask)).logits


def test_every_token_decides_for_itself() -> None:
    model = tiny.model()
    mask = _read(model, EVEN, "resid_post.0") @ UNIT > 0.1
    assert mask.any() and not mask.all()
    edit = Edit("resid_post.1", Add(V), when=When("resid_post.0", U, above=0.1))
    out = model.forward(EVEN, edit=edit)
    assert torch.equal(out.logits, _expected(model, EVEN, mask))
    assert out.touched == [int(mask.sum())]


def test_padding_neither_decides_nor_is_counted() -> None:
    model = tiny.model()
    edit = Edit("resid_post.1", Add(V), when=When("resid_post.0", U, above=-1e9))
    out = model.forward(RAGGED, edit=edit)
    assert out.touched == [sum(map(len, RAGGED))]
    row = Edit("resid_post.1", Add(V), when=When("resid_post.0", U, above=0.1, tokens="all"))
    together = model.forward(RAGGED, edit=row)
    for index, ids in enumerate(RAGGED):
        alone = model.forward([ids], edit=row).logits[0]
        assert torch.allclose(together.logits[index, : len(ids)], alone, atol=1e-5)


def test_a_row_decides_once_at_its_tokens() -> None:
    model = tiny.model()
    score = _read(model, EVEN, "resid_post.0", tokens="last") @ UNIT
    bound = float(score.median()) + 1e-4
    edit = Edit("resid_post.1", Add(V), when=When("resid_post.0", U, above=bound, tokens="last"))
    mask = (score > bound)[:, None].expand(-1, 4)
    assert 0 < int(mask.sum()) < 16
    out = model.forward(EVEN, edit=edit)
    assert torch.equal(out.logits, _expected(model, EVEN, mask))
    assert out.touched == [int(mask.sum())]


def test_any_and_mean_are_different_rules() -> None:
    model = tiny.model()
    score = _read(model, EVEN, "resid_post.0") @ UNIT
    bound = float(score.max(1).values.median()) - 1e-4
    for pool, passed in (("any", (score > bound).any(1)), ("mean", score.mean(1) > bound)):
        edit = Edit("resid_post.1", Add(V), when=When("resid_post.0", U, above=bound, tokens="prompt", pool=pool))
        mask = passed[:, None].expand(-1, 4)
        assert torch.allclose(model.forward(EVEN, edit=edit).logits, _expected(model, EVEN, mask), atol=1e-6)
    assert bool(((score > bound).any(1) != (score.mean(1) > bound)).any())


def test_conditions_join() -> None:
    model = tiny.model()
    states = _read(model, EVEN, "resid_post.0")
    a, b = states @ UNIT > 0.0, states @ (V / V.norm()) < 0.2
    one, two = When("resid_post.0", U, above=0.0), When("resid_post.0", V, below=0.2)
    for joined, mask in ((one & two, a & b), (one | two, a | b), (~one, ~a), (~(one & two) | one, ~(a & b) | a)):
        out = model.forward(EVEN, edit=Edit("resid_post.1", Add(V), when=joined))
        assert torch.equal(out.logits, _expected(model, EVEN, mask))


def test_a_function_or_a_module_can_test() -> None:
    model = tiny.model()
    mask = _read(model, EVEN, "attn_out.1").norm(dim=-1) > 1.0
    edit = Edit("resid_post.1", Add(V), when=When("attn_out.1", lambda h: h.norm(dim=-1), above=1.0))
    assert torch.equal(model.forward(EVEN, edit=edit).logits, _expected(model, EVEN, mask))
    truth = Edit("resid_post.1", Add(V), when=When("attn_out.1", lambda h: h.norm(dim=-1) > 1.0))
    assert torch.equal(model.forward(EVEN, edit=truth).logits, _expected(model, EVEN, mask))


def test_at_its_own_site_it_sees_what_earlier_parts_left() -> None:
    model = tiny.model()
    states = _read(model, EVEN, "resid_post.1")
    before, after = states @ UNIT > 0.0, (states + U) @ UNIT > 0.0
    assert bool((before != after).any())
    when = When("resid_post.1", U, above=0.0)
    edit = Edit("resid_post.1", Add(U)) + Edit("resid_post.1", Scale(2.0), when=when)
    want = model.forward(EVEN, edit=Edit("resid_post.1", Add(U)) + Edit("resid_post.1", Scale(2.0), tokens=after))
    assert torch.equal(model.forward(EVEN, edit=edit).logits, want.logits)


def test_a_verdict_at_the_prompt_holds_through_a_generation() -> None:
    """As an edit of those rows alone, beams and a left-padded batch included."""
    model = tiny.model()
    score = _read(model, RAGGED, "resid_post.0", tokens="last") @ UNIT
    bound = float(score.sort().values[1:3].mean())
    edit = Edit("resid_post.1", Add(3 * V), when=When("resid_post.0", U, above=bound, tokens="last"))
    for options in ({}, {"num_beams": 2}):
        found = model.generate(RAGGED, edit=edit, max_new_tokens=6, do_sample=False, **options)
        for index, ids in enumerate(RAGGED):
            mine = Edit("resid_post.1", Add(3 * V)) if float(score[index]) > bound else None
            want = model.generate([ids], edit=mine, max_new_tokens=6, do_sample=False, **options)[0]
            assert found[index] == want


def test_a_verdict_of_a_prompt_that_comes_in_chunks() -> None:
    model = tiny.model()
    hf: Any = model.hf
    ids = torch.tensor([RAGGED[2]])
    for pool in ("any", "mean"):
        score = _read(model, ids, "resid_post.0")[0] @ UNIT
        bound = (float(score.mean()) if pool == "mean" else float(score[0])) - 1e-3
        edit = Edit(
            "resid_post.1", Add(V), "response", when=When("resid_post.0", U, above=bound, tokens="prompt", pool=pool)
        )
        with model.edited(edit) as run:
            want = hf.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
        assert run.touched == [3]
        with model.edited(edit):
            got = hf.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0, prefill_chunk_size=2)
        assert torch.equal(got, want)


def test_a_condition_that_holds_nowhere_changes_nothing_and_is_no_error() -> None:
    model = tiny.model()
    out = model.forward(EVEN, edit=Edit("resid_post.1", Add(V), when=When("resid_post.0", U, above=1e9)))
    assert torch.equal(out.logits, model.forward(EVEN).logits)
    assert out.touched == [0]


def test_gradients_flow_where_it_holds() -> None:
    model = tiny.model()
    mask = _read(model, EVEN, "resid_post.0") @ UNIT > 0.1
    grads = []
    for more in ({"when": When("resid_post.0", U, above=0.1)}, {"tokens": mask}):
        add = Add(nn.Parameter(V.clone()))
        model.forward(EVEN, edit=Edit("resid_post.1", add, **more)).logits.square().mean().backward()
        grads.append(add.state()["vector"].grad)
    assert grads[0] is not None and torch.equal(grads[0], grads[1]) and bool(grads[0].any())


def test_reading_in_batches_decides_as_one_batch() -> None:
    model = tiny.model()
    tokens = torch.tensor([[0], [1], [2], [0]])
    when = When("resid_post.0", U, above=0.0, tokens=tokens)
    edit = Edit("resid_post.1", Add(V), when=when) + Edit("resid_post.1", Swap(EVEN), tokens=0, when=~when)
    whole = model.forward(EVEN, edit=edit, read="resid_post.2", tokens="last").acts
    assert whole is not None
    found = model.read(EVEN, "resid_post.2", tokens="last", edit=edit, batch_tokens=4)
    assert torch.allclose(found["resid_post.2"], whole["resid_post.2"], atol=1e-5)


def test_it_is_saved_and_loaded(tmp_path: Any) -> None:
    model = tiny.model()
    when = When("resid_post.0", U, above=0.0, tokens="last") | ~When("resid_post.0", _score, below=0.5)
    edit = Edit("resid_post.1", Add(V), when=when)
    edit.save(tmp_path / "edit", model)
    again = Edit.from_pretrained(tmp_path / "edit", model)
    assert torch.equal(model.forward(EVEN, edit=again).logits, model.forward(EVEN, edit=edit).logits)
    assert repr(again) == repr(edit)


def _score(h: Tensor) -> Tensor:
    return h.mean(-1)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: When("resid_post.0", U), "above= or below="),
        (lambda: When("resid_post.0", U, above=1.0, below=0.0), "holds nowhere"),
        (lambda: When("resid_post.*", U, above=1.0), "every layer"),
        (lambda: When("resid_post.0", U, above=0.0, pool="max"), "'any', 'mean'"),
        (lambda: When("resid_post.0", U, above=0.0, pool="mean"), "needs tokens"),
        (lambda: Edit("resid_post.0", Add(V), when=U), "not a condition"),
    ],
)
def test_bad_conditions_say_what_to_do(make: Any, says: str) -> None:
    with pytest.raises(EditError, match=says):
        make()


@pytest.mark.parametrize(
    ("edit", "error", "says"),
    [
        (Edit("resid_post.0", Add(V), when=When("resid_post.1", U, above=0.0)), EditError, "not reached before"),
        (Edit("resid_post.1", Add(V), when=When("resid_post.0", lambda h: h)), EditError, "not \\[rows, tokens\\]"),
        (Edit("resid_post.1", Add(V), when=When("resid_post.0", lambda h: h[..., 0])), EditError, "returned numbers"),
        (Edit("resid_mid.1", Add(V), when=When("resid_mid.1", U, above=0.0)), SiteError, "use attn_out"),
        (Edit("resid_post.1", Add(V), when=When("resid_post.9", U, above=0.0)), SiteError, "out of range"),
        (Edit("k_rot.1.h0", Scale(2.0), "prompt", when=When("resid_post.0", U, above=0.0)), None, ""),
    ],
)
def test_conditions_that_a_model_cannot_follow(edit: Edit, error: Any, says: str) -> None:
    model = tiny.model()
    if error is None:
        model.forward(EVEN, edit=edit)  # without a cache the keys are the call's own positions
        return
    with pytest.raises(error, match=says):
        model.forward(EVEN, edit=edit)
